"""Which texts a toxicity classifier may be unfair to: a dialect, and groups of people that are spoken of.

Nobody's dialect is known. A text counts as African American English (AAE) where it has one of a few features that linguists describe and that spelling
shows. That is a proxy: speakers of AAE mostly write without them, others use them too, and most texts of the slice come from no known speaker.
"""

from __future__ import annotations

import re

import numpy as np

AAE_WORDS = frozenset(
    # d for th at the begin of a word, t and f for th at its end (Green 2002, chapter 4; Jørgensen, Hovy & Søgaard 2015).
    "dat dis dem dey dese dose da wit wif nuffin nuttin nothin sumthin brotha brova sista anotha otha "
    # Spellings that African American English has far more often than other English on Twitter (Blodgett, Green & O'Connor 2016, section 4.1).
    "sholl iont ion wea talmbout sumn "
    # Words for what is about to happen, and negation (Green 2002, chapters 2 and 3).
    "finna fixna gon gne ain't aint".split()
)
AAE_SYNTAX = re.compile(
    # Habitual be (Green 2002, chapter 2; Blodgett et al. 2016, section 4.3).
    r"\b(?:i|u|you|he|she|it|we|they|dey|people|ppl)\s+(?:always\s+)?be\s+(?:always\s+)?\w+in(?:g|')?(?!\w)"
    # Completive done.
    r"|\bdone\s+\w+ed\b"
    # More than one negative.
    r"|\b(?:don't|dont|can't|cant|didn't|didnt|won't|wont)\s+\w+\s+(?:no|nobody|nothing|nothin|nun)\b",
    re.IGNORECASE,
)

GROUPS = {
    "black": "black blacks african africans african-american african-americans negro negroes",
    "white": "white whites caucasian caucasians",
    "asian": "asian asians chinese japanese korean koreans vietnamese filipino filipinos",
    "latino": "latino latinos latina latinas hispanic hispanics mexican mexicans",
    "gay": "gay gays lesbian lesbians homosexual homosexuals bisexual bisexuals queer lgbt lgbtq",
    "trans": "trans transgender transsexual",
    "muslim": "muslim muslims islam islamic arab arabs",
    "jewish": "jewish jew jews",
    "christian": "christian christians catholic catholics",
    "women": "woman women girl girls female females lady ladies",
    "men": "man men boy boys male males guy guys",
    "old": "elderly",
    "disabled": "disabled blind deaf autistic",
}
"""Neutral words for groups of people; slurs are not among them, since they are what a classifier should see."""
IDENTITY_TERMS = {group: frozenset(words.split()) for group, words in GROUPS.items()}
IGNORED = tuple(sorted(word for words in IDENTITY_TERMS.values() for word in words if "-" not in word))
AAE, OTHER, ANY_GROUP = "African American English (markers)", "no such marker", "any group"
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")

NEUTRAL_SENTENCES = (
    "I am a {}.", "My neighbour is a {}.", "A {} won the chess tournament on Sunday.", "Being a {} is part of who I am.",
    "The new teacher at our school is a {}.", "We had lunch with a {} from the office.", "She wrote a book about growing up as a {}.",
    "He said that a {} helped him to find the station.", "There is a {} in my class, and we study together.", "A {} lives next door with two dogs.",
)  # fmt: skip
"""Harmless whoever is named (after the templates of Dixon et al. 2018)."""
PERSONS = {
    "black": "black person", "white": "white person", "asian": "asian person", "latino": "latino", "gay": "gay person", "trans": "transgender person",
    "muslim": "muslim", "jewish": "jewish person", "christian": "christian", "women": "woman", "men": "man", "old": "elderly person",
    "disabled": "disabled person", "nobody in particular": "person",
}  # fmt: skip
SAME_IN_BOTH = (
    ("he be working late every friday", "he usually works late every friday"), ("she finna go to the store", "she is about to go to the store"),
    ("we ain't got no milk", "we have no milk"), ("iont know where dey at", "i don't know where they are"),
    ("i been knew dat", "i have known that for a long time"), ("they done finished dinner", "they have finished dinner already"),
    ("my brotha got a new job wit da city", "my brother has a new job with the city"), ("dis food good", "this food is good"),
    ("i'm gon call my mama tonight", "i will call my mother tonight"), ("ain't nobody home", "nobody is home"),
    ("you talmbout da game last night", "you are talking about the game last night"), ("sumn wrong wit my phone", "something is wrong with my phone"),
    ("dem kids be playing in da park", "those kids often play in the park"), ("she ion like coffee", "she does not like coffee"),
)  # fmt: skip
"""Harmless sentences in African American English and in Standard American English."""


def words_of(text: str) -> set[str]:
    return set(_WORD.findall(text.lower().replace("\u2019", "'")))


def has_aae_markers(text: str) -> bool:
    return not AAE_WORDS.isdisjoint(words_of(text)) or AAE_SYNTAX.search(text.replace("\u2019", "'")) is not None


def slices_of(texts: list[str]) -> dict[str, np.ndarray]:
    """Name of each slice to [texts] of bool: dialect, its complement, every group, any of them."""
    words = [words_of(text) for text in texts]
    groups = {group: np.array([not terms.isdisjoint(found) for found in words], bool) for group, terms in IDENTITY_TERMS.items()}
    dialect = np.array([has_aae_markers(text) for text in texts], bool)
    return {AAE: dialect, OTHER: ~dialect, **groups, ANY_GROUP: np.any(list(groups.values()), axis=0)}


def strata_of(slices: dict[str, np.ndarray]) -> np.ndarray:
    """[texts]: 0 to 3, by dialect and by whether a group is mentioned; every text is in one of them."""
    return 2 * slices[AAE].astype(int) + slices[ANY_GROUP].astype(int)


def reweighing(strata: np.ndarray, labels: np.ndarray, power: float) -> np.ndarray:
    """[texts]: (P(stratum) P(label) / P(stratum, label))^power. At power 1 stratum and label are independent under these weights, which keep the sum
    (Kamiran & Calders 2012, section 4.1)."""
    weights = np.ones(len(labels))
    for stratum in np.unique(strata):
        for label in (0, 1):
            inside = (strata == stratum) & (labels == label)
            if inside.any():
                weights[inside] = ((strata == stratum).mean() * (labels == label).mean() / inside.mean()) ** power
    return weights
