"""Questions, answers and rankings made by rule from docstrings. No person wrote or judged them: all of it is marked
`source: "synthetic"`, `annotator: "rule"`.

A question names a function, its signature and its module; the right answer is the first sentences of its docstring.
The four answers of a ranking, best first:

    0  the right answer
    1  the right answer cut short
    2  the answer of a sibling (another function of the same module), cut short
    3  the words of an unrelated answer (a function of another module), shuffled

An answer cut short loses between a third and two thirds of its words, so that length alone tells little: the last
answer is as long as right answers are.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megagpt.data.python_docs import Function
from megagpt.data.records import Demonstration, Prompt, Ranking
from megagpt.data.split import share
from megagpt.tokenizer.chat import Message

SYNTHETIC = "synthetic"
SLICE = "python-docs-synthetic"

QUESTIONS = (
    "What does {name}{signature} in module {module} do?",
    "In Python's module {module}, what is {name}{signature} for?",
    "Explain {name}{signature} of module {module}.",
    "Describe briefly what {module}.{name}{signature} does.",
    "I found {name}{signature} in {module}. What does it do?",
)
MIN_ANSWER_WORDS = 6
"""A shorter first sentence ("See the base class.") answers nothing, and cannot be cut short."""


@dataclass(frozen=True, slots=True)
class Example:
    """A function with its question and right answer."""

    key: str
    """`module.name`: splits and all choices below are hashes of it."""
    module: str
    question: str
    answer: str


def make_examples(
    functions: Iterable[Function], max_question: int, max_answer: int, dropped: Counter[str]
) -> list[Example]:
    """One question and answer for each function whose docstring gives one.

    Args:
        max_question, max_answer: longest allowed, in characters. Answers are cut at a sentence.
        dropped: gets the functions left out, by reason.
    """
    examples: dict[str, Example] = {}
    for function in functions:
        key = f"{function.module}.{function.name}"
        template = QUESTIONS[int(share(f"question {key}") * len(QUESTIONS))]
        question = template.format(name=function.name, signature=function.signature, module=function.module)
        answer = first_sentences(function.docstring, max_answer)
        if len(question) > max_question:
            dropped["question too long"] += 1
        elif len(answer.split()) < MIN_ANSWER_WORDS:
            dropped["no answer of a fitting length"] += 1
        elif answer in examples:
            dropped["same answer as another function"] += 1
        else:
            examples[answer] = Example(key, function.module, question, answer)
    return list(examples.values())


_PROSE_ENDS = re.compile(r"\n\s*\n|\n[ \t]*(?:>>>|[-*+] |\w+:\n)|\n(?=[ \t]{2,}\S)|::\n|:\n")
_SENTENCE = re.compile(r"\S.*?[.!?](?=\s|$)")


def first_sentences(docstring: str, max_characters: int) -> str:
    """The first sentences of a docstring's first paragraph that fit; empty where the first one does not.

    Lists, examples and indented blocks are no prose and end it.
    """
    prose = " ".join(_PROSE_ENDS.split(docstring, maxsplit=1)[0].split())
    if prose and prose[-1] not in ".!?":
        prose = prose.rstrip(":;,") + "."
    answer = ""
    for sentence in _SENTENCE.findall(prose):
        longer = f"{answer} {sentence}".strip()
        if len(longer) > max_characters:
            break
        answer = longer
    return answer


def demonstrations(examples: Iterable[Example]) -> list[Demonstration]:
    return [
        Demonstration((*_question(example), Message(role="assistant", content=example.answer)), SYNTHETIC)
        for example in examples
    ]


def prompts(examples: Iterable[Example]) -> list[Prompt]:
    return [Prompt(example.key, _question(example)) for example in examples]


def rankings(examples: Iterable[Example], others: Sequence[Example], dropped: Counter[str]) -> list[Ranking]:
    """A ranking for each example that has a sibling among `others`.

    Args:
        others: where wrong answers are taken from.
        dropped: gets the examples left out, by reason.
    """
    by_module: dict[str, list[Example]] = defaultdict(list)
    for other in others:
        by_module[other.module].append(other)
    made = []
    for example in examples:
        siblings = [other for other in by_module[example.module] if other.key != example.key]
        if not siblings:
            dropped["no other function in its module"] += 1
            continue
        sibling = siblings[int(share(f"sibling {example.key}") * len(siblings))]
        best_first = (
            example.answer,
            cut_short(example.answer, example.key),
            cut_short(sibling.answer, f"sibling {example.key}"),
            " ".join(_shuffled(_unrelated(example, others).answer.split(), example.key)),
        )
        if len(set(best_first)) < len(best_first):
            dropped["two answers are equal"] += 1
            continue
        order = _shuffled(range(len(best_first)), f"order {example.key}")
        made.append(
            Ranking(
                prompt=_question(example),
                answers=tuple(best_first[rank] for rank in order),
                ranks=tuple(order),
                slice=SLICE,
                annotator="rule",
                source=SYNTHETIC,
            )
        )
    return made


def cut_short(answer: str, key: str) -> str:
    """The first third to two thirds of an answer's words, without a sentence's end."""
    words = answer.split()
    kept = round(len(words) * (1 + share(f"cut {key}")) / 3)
    return " ".join(words[: max(kept, 1)]).rstrip(".,:;!?")


def _question(example: Example) -> tuple[Message, ...]:
    return (Message(role="user", content=example.question),)


def _unrelated(example: Example, others: Sequence[Example]) -> Example:
    """The first example of another module from a place on that a hash chooses; its own in a corpus of one module."""
    start = int(share(f"unrelated {example.key}") * len(others))
    places = (others[(start + step) % len(others)] for step in range(len(others)))
    return next((other for other in places if other.module != example.module), example)


def _shuffled(items: Iterable, key: str) -> list:
    """Items in an order that depends on nothing but the key and their number."""
    return [item for _, item in sorted((share(f"{key} {i}"), item) for i, item in enumerate(items))]
