"""Public row shapes to the project's own, recognised by their keys.

Each function takes one JSON row and yields rows in the shapes of `records.py`, or a `Dropped` where a row is well
formed but of no use. A row of another shape raises `UnknownShape`; a value of the wrong type passes through, for
`records.py` to refuse by name.

| shape | keys |
|---|---|
| ours | `messages`; `prompt` + `answers` + `ranks`, or `pairs` for a partial order; `id` + `prompt` |
| Anthropic HH | `chosen` + `rejected`, whole conversations with `Human:` and `Assistant:` |
| pairs | `prompt` + `chosen` + `rejected`, texts or messages |
| PandaLM | `instruction`, perhaps `input`, + `response1` + `response2` + `annotator1`, `annotator2`, …: a ranking for each annotator |
| PandaLM, by question | `instruction`, perhaps `input`, + `responses` of `model` + `text` + `pairs` of (model, model, marks): a partial order for each annotator |
| OpenAssistant | `context` + `ranked` (K-way rankings); `message_tree_id` + `prompt` with `replies` (trees) |
| self-instruct | `instruction` + `instances` |
| Alpaca | `instruction` + `output`, perhaps `input`, `system`, and `history` of (question, answer) |
| ShareGPT | `conversations` of `from` + `value` (or `role` + `content`), perhaps `system` |
| T0, P3 | `prompt` + `completion`, texts |
| prompt list | a JSON string |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from megagpt.data.partial_order import find_circle
from megagpt.tokenizer.special import ROLES

Row = dict[str, Any]

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ANNOTATOR = re.compile(r"annotator\d+")
_MARKS = {0: [0, 0], 1: [0, 1], 2: [1, 0]}
"""PandaLM's marks of a pair, as ranks: a tie, the first response, the second one."""
_EVALUATION_ONLY = re.compile(r"user_oriented_task_\d+")
"""Ids of self-instruct's second set, which its authors reserve for evaluation."""


class Dropped(str):
    """Why a well-formed row gives no record."""


class UnknownShape(ValueError):
    """A row (or an object inside one) of none of the shapes above."""

    def __init__(self, row: Any, kind: str):
        found = f"keys {', '.join(map(str, row))}" if isinstance(row, dict) else type(row).__name__
        super().__init__(f"unknown shape of a {kind}: {found}")


class UnknownMark(ValueError):
    """An annotator's mark without a meaning."""


def to_demonstrations(row: Any) -> Iterator[Row | Dropped]:
    """Conversations that end with an answer to imitate."""
    match row:
        case {"messages": messages}:
            made = _demonstration(messages)
            yield made if isinstance(made, Dropped) else made | {"source": row.get("source") or ""}
        case {"conversations": list(turns)}:
            named = [("from", "value") if "from" in turn else ("role", "content") for turn in _objects(turns, "turn")]
            yield _demonstration([*_system(row), *(_turn(turn, *names) for turn, names in zip(turns, named, strict=True))])
        case {"message_tree_id": _, "prompt": dict(root)}:
            yield from _tree_demonstrations(root)
        case {"instruction": str(instruction), "instances": list(instances)}:
            if _EVALUATION_ONLY.fullmatch(str(row.get("id"))):
                yield Dropped("evaluation only")
                return
            for instance in _objects(instances, "instance"):
                yield _demonstration(_instruction(instruction, instance.get("input"), instance.get("output")))
        case {"instruction": str(instruction), "output": output}:
            yield _demonstration([*_system(row), *_history(row.get("history")), *_instruction(instruction, row.get("input"), output)])
        case {"prompt": str() | list() as prompt, "completion": completion}:
            answer = completion.removesuffix("<|endoftext|>") if isinstance(completion, str) else completion
            yield _demonstration([*_messages(prompt), {"role": "assistant", "content": answer}])
        case {"chosen": str(chosen), "rejected": str(_)} if "prompt" not in row:
            yield _demonstration(_hh_messages(chosen))
        case _:
            raise UnknownShape(row, "demonstration")


def to_rankings(row: Any) -> Iterator[Row | Dropped]:
    """A prompt and its ranked answers."""
    match row:
        case {"answers": _, "ranks": _, "prompt": prompt}:
            yield _ranking(row | {"prompt": _messages(prompt)})
        case {"answers": _, "pairs": _, "prompt": prompt}:
            yield _ranking(row | {"prompt": _messages(prompt)})
        case {"chosen": str(chosen), "rejected": str(rejected)} if "prompt" not in row:
            yield _hh_pair(chosen, rejected)
        case {"prompt": prompt, "chosen": chosen, "rejected": rejected}:
            yield _pair(_messages(prompt), _last_content(chosen), _last_content(rejected))
        case {"instruction": str(instruction), "response1": first, "response2": second} if any(map(_ANNOTATOR.fullmatch, row)):
            for name in sorted(name for name in row if _ANNOTATOR.fullmatch(name)):
                yield _judged_pair(_question(instruction, row.get("input")), first, second, name, row[name])
        case {"instruction": str(instruction), "responses": list(responses), "pairs": list(pairs)}:
            yield from _judged_group(_question(instruction, row.get("input")), _objects(responses, "response"), pairs)
        case {"context": list(context), "ranked": list(ranked)}:
            prompt = [_turn(turn, "role", "text") for turn in context]
            yield _ranking({"prompt": prompt} | _ranked(_objects(ranked, "ranked answer")))
        case {"message_tree_id": _, "prompt": dict(root)}:
            yield from _tree_rankings(root)
        case _:
            raise UnknownShape(row, "ranking")


def to_prompts(row: Any) -> Iterator[Row | Dropped]:
    """Messages for a model to answer: a row of any kind gives the part before its last answer."""
    match row:
        case str(text):
            yield {"prompt": _messages(text)}
        case {"message_tree_id": tree, "prompt": dict(root)}:
            yield Dropped("synthetic") if root.get("synthetic") else _with_id(row, tree, _messages(root.get("text")))
        case {"context": list(context), "ranked": _}:
            yield {"prompt": [_turn(turn, "role", "text") for turn in context]}
        case {"chosen": str(chosen), "rejected": str(_)} if "prompt" not in row:
            yield _before_answer(_hh_messages(chosen))
        case {"prompt": prompt}:
            yield _with_id(row, row.get("id"), _messages(prompt))
        case _:
            try:
                demonstrations = list(to_demonstrations(row))
            except UnknownShape:
                raise UnknownShape(row, "prompt") from None
            for made in demonstrations:
                yield made if isinstance(made, Dropped) else _before_answer(made["messages"])


def _objects(values: Any, kind: str) -> list[Row]:
    if not isinstance(values, list):
        raise UnknownShape(values, f"list of {kind}s")
    for value in values:
        if not isinstance(value, dict):
            raise UnknownShape(value, kind)
    return values


def _with_id(row: Row, id: Any, messages: list[Any]) -> Row:
    made = {"prompt": messages}
    return made if id is None else made | {"id": id}


def _messages(prompt: Any) -> list[Any]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _turn(turn: Any, role: str, content: str) -> Any:
    if not isinstance(turn, dict):
        return turn
    name = turn.get(role)
    return {"role": _ROLES.get(name, name) if isinstance(name, str) else name, "content": turn.get(content)}


def _system(row: Row) -> list[Row]:
    """The system message that some sets keep beside the conversation."""
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _history(turns: Any) -> list[Row]:
    """(question, answer) pairs before the instruction."""
    pairs = turns or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UnknownShape(turns, "history of (question, answer)")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _demonstration(messages: Any) -> Row | Dropped:
    """A conversation cut behind its last answer. One with a role that nobody knows stays whole, for `records.py` to refuse."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) and message.get("role") in ROLES for message in messages):
        return {"messages": messages}
    if not messages:
        return Dropped("empty conversation")
    end = len(messages)
    while end and not _is_answer(messages[end - 1]):
        end -= 1
    if not end:
        return Dropped("no answer")
    if _is_answer(messages[0]):
        return Dropped("starts with an answer")
    return {"messages": messages[:end]}


def _before_answer(messages: Any) -> Row | Dropped:
    if not isinstance(messages, list):
        return {"prompt": messages}
    end = len(messages) - 1 if messages and _is_answer(messages[-1]) else len(messages)
    return {"prompt": messages[:end]} if end else Dropped("no question")


def _instruction(instruction: str, given: Any, output: Any) -> list[Row]:
    return [{"role": "user", "content": _question(instruction, given)}, {"role": "assistant", "content": output}]


def _question(instruction: str, given: Any) -> str:
    has_input = isinstance(given, str) and given.strip() not in ("", "<noinput>")
    return f"{instruction}\n\n{given}" if has_input else instruction


def _hh_messages(conversation: str) -> list[Row]:
    """Turns of an HH conversation; neighbours of one speaker are one message (some rows repeat the speaker's name)."""
    before, *parts = _HH_TURN.split(conversation)
    messages: list[Row] = []
    if before.strip():
        messages.append({"role": "system", "content": before.strip()})
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = _ROLES[speaker.lower()]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{text.strip()}"
        else:
            messages.append({"role": role, "content": text.strip()})
    return messages


def _hh_pair(chosen: str, rejected: str) -> Row | Dropped:
    better, worse = _hh_messages(chosen), _hh_messages(rejected)
    if not (better and worse and _is_answer(better[-1]) and _is_answer(worse[-1])):
        return Dropped("ends without an answer")
    if better[:-1] != worse[:-1]:
        return Dropped("the two conversations part before the last answer")
    return _pair(better[:-1], better[-1]["content"], worse[-1]["content"])


def _pair(prompt: list[Any], better: Any, worse: Any) -> Row | Dropped:
    return _ranking({"prompt": prompt, "answers": [better, worse], "ranks": [0, 1]})


def _judged_pair(question: str, first: Any, second: Any, annotator: str, mark: Any) -> Row | Dropped:
    if type(mark) is not int or mark not in _MARKS:
        raise UnknownMark(f"{annotator} is {mark!r}, must be 0 (tie), 1 or 2 (the better response)")
    if not (isinstance(first, str) and isinstance(second, str)):
        return Dropped("a response is not a text")  # published rows have `true` and `false` for what once were words
    return _ranking({"prompt": _messages(question), "answers": [first, second], "ranks": _MARKS[mark], "annotator": annotator})


def _judged_group(question: str, responses: list[Row], pairs: list[Any]) -> Iterator[Row | Dropped]:
    """What each annotator said of the pairs of answers to one question. Equal answers are one, and a pair of them says nothing.

    A tie makes no pair, so that the order does not tell it from two answers that nobody compared. An annotator may have put answers in a
    circle, or (by ties alone) none above another.
    """
    texts = _texts_of_models(responses)
    num_annotators = _check_judged_pairs(pairs, texts)
    if not all(isinstance(text, str) for text in texts.values()):
        yield from [Dropped("a response is not a text")] * num_annotators
        return
    answers = list(dict.fromkeys(texts.values()))
    for number in range(num_annotators):
        order: dict[tuple[int, int], None] = {}
        for first, second, marks in pairs:
            better, worse = (answers.index(texts[name]) for name in ((first, second) if marks[number] == 1 else (second, first)))
            if better == worse:
                yield Dropped("two answers are equal")
            elif marks[number]:
                order[better, worse] = None
        if find_circle(order):
            yield Dropped("judgements go in a circle")
        else:
            judged = {"answers": answers, "pairs": [list(pair) for pair in order], "annotator": f"annotator{number + 1}"}
            yield _ranking({"prompt": _messages(question)} | judged)


def _texts_of_models(responses: list[Row]) -> dict[str, Any]:
    texts: dict[str, Any] = {}
    for response in responses:
        model = response.get("model")
        if not isinstance(model, str) or model in texts:
            raise UnknownMark(f"a response's model is {model!r}, must be a name of its own")
        texts[model] = response.get("text")
    return texts


def _check_judged_pairs(pairs: list[Any], texts: dict[str, Any]) -> int:
    """Number of annotators, who all judged every pair."""
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 3 and isinstance(pair[2], list) and len(pair[2]) == len(pairs[0][2])):
            raise UnknownMark(f"pair {pair!r} must be [model, model, marks], with a mark of every annotator")
        for name in pair[:2]:
            if not isinstance(name, str) or name not in texts:
                raise UnknownMark(f"pair {pair!r}: {name!r} is none of the responses' models")
        for mark in pair[2]:
            if type(mark) is not int or mark not in _MARKS:
                raise UnknownMark(f"pair {pair!r}: mark {mark!r} must be 0 (tie), 1 or 2 (the better response)")
    return len(pairs[0][2]) if pairs else 0


def _last_content(answer: Any) -> Any:
    """A text, or the last of some messages."""
    return answer[-1].get("content") if isinstance(answer, list) and answer and isinstance(answer[-1], dict) else answer


def _ranking(row: Row) -> Row | Dropped:
    answers, ranks, pairs = row["answers"], row.get("ranks"), row.get("pairs")
    if not (isinstance(answers, list) and isinstance(ranks if pairs is None else pairs, list)):
        return row
    if any(isinstance(answer, str) and not answer.strip() for answer in answers):
        return Dropped("empty answer")
    if len(set(map(str, answers))) < len(answers):
        return Dropped("two answers are equal")
    if pairs is None and sum(rank is not None for rank in ranks) < 2 <= len(ranks):
        return Dropped("fewer than two answers are ranked")
    if pairs == []:
        return Dropped("no answer is preferred to another")
    return row


def _ranked(replies: list[Any]) -> Row:
    return {"answers": [reply.get("text") for reply in replies], "ranks": [reply.get("rank") for reply in replies]}


def _tree_paths(node: Row, path: tuple[Row, ...] = ()) -> Iterator[tuple[tuple[Row, ...], list[Row]]]:
    """Each human message's path from the root, and its human replies. A machine's message ends its branch."""
    if node.get("synthetic") or node.get("deleted"):
        return
    path = (*path, _turn(node, "role", "text"))
    replies = [
        reply
        for reply in _objects(node.get("replies", []), "reply")
        if not (reply.get("synthetic") or reply.get("deleted"))
    ]
    yield path, replies
    for reply in replies:
        yield from _tree_paths(reply, path)


def _tree_demonstrations(root: Row) -> Iterator[Row | Dropped]:
    """One conversation for each human answer below which there is no other: everything from the root down to it.

    The answers above are targets in it, so all are learned; a conversation of its own for each would repeat them more often.
    """
    paths = [path for path, _ in _tree_paths(root)]
    if not paths:
        yield Dropped("synthetic")
    answered = [path for path in paths if _is_answer(path[-1])]
    inner = {tuple(map(id, path[:length])) for path in answered for length in range(1, len(path))}
    for path in answered:
        if tuple(map(id, path)) not in inner:
            yield _demonstration(list(path))


def _rank_or_0(reply: Row) -> int:
    """0 for what is no rank, which `records.py` will refuse by name."""
    return reply["rank"] if type(reply["rank"]) is int else 0


def _tree_rankings(root: Row) -> Iterator[Row | Dropped]:
    for path, replies in _tree_paths(root):
        ranked = [reply for reply in replies if reply.get("role") == "assistant" and reply.get("rank") is not None]
        if len(ranked) > 1:
            yield _ranking({"prompt": list(path)} | _ranked(sorted(ranked, key=_rank_or_0)))
