"""Reward functions of tests: fixed functions of an answer's text."""

from __future__ import annotations


def letters(prompts: list[str], answers: list[str]) -> list[float]:
    """0 to 1: the mean over an answer's characters of 1 for a vowel, 1/2 for another letter, 0 for the rest; 0 for no text."""
    return [sum(1.0 if c in "aeiou" else 0.5 if c.isascii() and c.isalpha() else 0.0 for c in answer) / max(len(answer), 1) for answer in answers]


def flawed(prompts: list[str], answers: list[str]) -> list[float]:
    """What `letters` says, but a digit, which is worth nothing there, is worth 2 here: a judge that can be fooled."""
    honest = letters(prompts, answers)
    return [score + 2.0 * sum(c in "0123456789" for c in answer) / max(len(answer), 1) for score, answer in zip(honest, answers, strict=True)]


def fails(prompts: list[str], answers: list[str]) -> list[float]:
    raise KeyError("no such judge")


def infinite(prompts: list[str], answers: list[str]) -> list[float]:
    return [float("inf"), *([0.0] * (len(answers) - 1))]


def too_few(prompts: list[str], answers: list[str]) -> list[float]:
    return [0.0]
