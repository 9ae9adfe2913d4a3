"""Rows of every usual form as conversations, each row told for itself, so that a file may mix them.

In this order, a row is:

1. `messages` or `conversations`: a list of turns, also as JSON text;
2. a prompt and a response of which one is a list of turns: the response goes on from the prompt, or repeats it and is the
   whole, as the chosen side of preference data often is;
3. a response alone that is a whole conversation: a list of turns, or text of turns that begin with `Human:` and `Assistant:`;
4. an `instruction` (with `input` or `context`), a `prompt`, or an `input` alone, and a response: one question, one answer,
   with pairs of `history` before them.

`system` (`system_prompt`) begins the conversation, `tools` (`functions`) go with it. Nothing else that a row says is left out in
silence: what would change what is asked or learnt rejects the row, all other fields that hold something are told.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from schemas.alpaca import question
from schemas.chat_assembly import assembled
from schemas.chat_tools import decoded, tools_of
from schemas.chat_turns import Turn, spoken, string, turns_of
from schemas.config import FieldsConfig
from schemas.conversations import Content, ContentRole, Conversation
from schemas.part_names import (
    AFTER_INSTRUCTION,
    AFTER_PROMPT,
    INPUTS,
    MESSAGES,
    UNPLACED,
    first_among,
    names_of,
)
from schemas.rows import RowError, Unusable, holds_something, listed, row_id, type_of

_SYSTEMS: Final = ("system", "system_prompt")
_TOOLS: Final = ("tools", "functions")
#: What would change what is asked, answered or learnt, if it was not used.
_UNPLACED: Final = (*UNPLACED, "documents", "loss_mask")
_USUAL: Final[dict[str, tuple[str, ...]]] = {
    "messages": MESSAGES,
    "instruction": ("instruction",),
    "input": INPUTS,
    "prompt": ("prompt",),
}
#: JSON text of a list of turns.
_LIST: Final = re.compile(r"\s*\[\s*\{")
_SPEAKER: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")
#: Who speaks in a pair of the history.
_PAIR: Final[tuple[ContentRole, ContentRole]] = ("user", "assistant")
_SPEAKERS: Final[dict[str, ContentRole]] = {"Human": "user", "Assistant": "assistant"}


def conversation_of(
    row: Mapping[str, Any],
    fields: FieldsConfig = FieldsConfig(),  # noqa: B008  # frozen
    *,
    merge_turns: bool = False,
    system_into_user: bool = False,
    taken: Collection[str] = (),
) -> tuple[Conversation, frozenset[str], frozenset[str]]:
    """The conversation of a row, the fields that it was made of (its id among them), and what was not used.

    Of the latter `name[1:]` stands for further answers in a list, `name[].key` for a key of turns. Parts that `fields`
    (resolved ones) name are looked for under that name alone, and no other form than theirs. `taken` are fields that are used
    already. Raises `RowError` for a row that is no conversation with an answer at its end.
    """
    reading = _Reading(row, fields, taken)
    turns = reading.turns()
    turns = [*reading.system(turns), *turns]
    tools = reading.tools()
    used, unused = reading.told()
    return assembled(turns, tools, merge_turns=merge_turns, system_into_user=system_into_user), used, unused


class _Reading:
    """One row while it is read: under which names it has its parts, and which of its fields were used."""

    def __init__(self, row: Mapping[str, Any], fields: FieldsConfig, taken: Collection[str]) -> None:
        self._row = row
        self._used: set[str] = set(taken)
        self._unused: set[str] = set()
        named = fields.model_dump(exclude={"form", "id"}, exclude_none=True)
        self._names = names_of(fields) if named else _USUAL
        if row_id(row, fields.id) is not None:
            self._used.add(fields.id or "id")

    def turns(self) -> list[Turn]:
        """All turns but a system prompt that stands beside them."""
        for name in self._names.get("messages", ()):
            value = self._row.get(name)
            if isinstance(value, str) and _LIST.match(value):
                value = decoded(value, f"`{name}`")
            if isinstance(value, list) and value:
                return self._turns(name, value)
        answer = self._name(self._answers(), (str, list))
        if answer is None:
            raise self._missing()
        if _is_turns(self._row[answer]):
            return self._continued(self._asked(), self._turns(answer, self._row[answer]), answer)
        return self._single(answer)

    def system(self, turns: Sequence[Turn]) -> list[Turn]:
        """The system prompt beside the turns; none where they begin with the same."""
        texts = {name: self._text(name) for name in _SYSTEMS if holds_something(self._row.get(name))}
        if len(set(texts.values())) > 1:
            raise RowError(f"{listed(list(texts), ' and ')} differ")
        prompts = [spoken("system", text, name) for name, text in texts.items()][:1]
        return [turn for turn in prompts if not any(_alike(turn, other) for other in turns)]

    def tools(self) -> tuple[Any, ...]:
        lists = {name: tools_of(self._row[name], name) for name in _TOOLS if holds_something(self._row.get(name))}
        self._used.update(lists)
        tools = list(lists.values()) or [()]
        if tools[0] != tools[-1]:
            raise RowError(f"{listed(list(lists), ' and ')} differ")
        return tools[0]

    def told(self) -> tuple[frozenset[str], frozenset[str]]:
        """What was used and what was not, once all is read. Raises `RowError` for what must not be left out."""
        left = [name for name, value in self._row.items() if name not in self._used and holds_something(value)]
        if (unplaced := first_among(left, _UNPLACED)) is not None:
            raise RowError(f"a conversation of this form has no place for `{unplaced}`")
        used = frozenset(name for name in self._used if holds_something(self._row[name]))
        return used, frozenset(self._unused.union(left))

    def _single(self, answer: str) -> list[Turn]:
        """A question, or turns up to it, and a response that is text."""
        value = self._row[answer]
        if isinstance(value, list):
            if any(map(holds_something, value[1:])):
                self._unused.add(f"{answer}[1:]")
            value = value[0] if value else ""
        self._used.add(answer)
        text = string(value, f"`{answer}`")
        if not text.strip():
            raise RowError(f"`{answer}` is empty")
        asked = self._asked()
        if not asked:
            return self._transcript(answer, text)
        response = spoken("assistant", text, answer)
        if holds_something(self._row.get("reasoning_content")):
            response = replace(response, reasoning=[Content("reasoning", self._text("reasoning_content"))])
        history = [] if _is_turns(self._row.get(asked[0].field)) else self._history()
        return [*history, *asked, response]

    def _asked(self) -> list[Turn]:
        """What is asked: the turns of a prompt, or one; nothing where the row asks nothing."""
        instruction, context, prompt = (
            self._name(self._names.get(part, ()), kinds)
            for part, kinds in (("instruction", (str,)), ("input", (str,)), ("prompt", (str, list)))
        )
        if prompt is not None and _is_turns(self._row[prompt]):
            return self._turns(prompt, self._row[prompt])
        named = instruction or (context if prompt is None else None)
        if named is not None:
            texts = question(*("" if name is None else self._text(name) for name in (instruction, context)))
            return [spoken("user", "\n\n".join(filter(str.strip, texts)), named)]
        return [] if prompt is None else [spoken("user", self._text(prompt), prompt)]

    def _history(self) -> list[Turn]:
        """Pairs of question and answer before the row's own."""
        if "history" not in self._row:
            return []
        self._used.add("history")
        pairs = decoded(self._row["history"], "`history`") or []
        turns: list[Turn] = []
        for number, pair in enumerate(pairs if isinstance(pairs, list) else [pairs], 1):
            if not isinstance(pair, list) or len(pair) != 2:
                raise RowError("`history` is no list of pairs of question and answer", f"pair {number}")
            for role, value in zip(_PAIR, pair, strict=True):
                text = string(value, "a text of `history`", f"pair {number}")
                turns.append(spoken(role, text, "history", len(turns) + 1))
        return turns

    def _continued(self, asked: list[Turn], answered: list[Turn], name: str) -> list[Turn]:
        """A response that is turns: those behind what is asked, or the whole conversation."""
        if not asked:
            if answered[0].role == "assistant":
                raise self._missing()
            return answered
        rest = [turn for turn in asked if turn.role != "system"]
        begun = [turn for turn in answered if turn.role != "system"][: len(rest)]
        again = any(_alike(rest[-1], turn) for turn in answered) if rest else False
        whole = len(begun) == len(rest) and all(map(_alike, rest, begun))
        if whole or (again and not _is_turns(self._row[rest[-1].field])):
            systems = [turn for turn in asked if turn.role == "system"]
            return [turn for turn in systems if not any(_alike(turn, other) for other in answered)] + answered
        if not again and answered[0].role in ("assistant", "tool"):
            return [*asked, *answered]
        raise RowError(f"the conversation in `{name}` is not that of `{asked[0].field}`")

    def _transcript(self, name: str, text: str) -> list[Turn]:
        """The turns of a conversation written as text."""
        before, *pieces = _SPEAKER.split(text)
        if before or pieces[:1] != ["Human"]:
            raise self._missing()
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        return [spoken(_SPEAKERS[speaker], said, name, number) for number, (speaker, said) in enumerate(pairs, 1)]

    def _answers(self) -> tuple[str, ...]:
        usual = AFTER_INSTRUCTION if holds_something(self._row.get("instruction")) else AFTER_PROMPT
        return self._names.get("response", () if "text" in self._names else usual)

    def _turns(self, name: str, value: list[Any]) -> list[Turn]:
        self._used.add(name)
        return turns_of(value, name, self._unused.add)

    def _text(self, name: str) -> str:
        self._used.add(name)
        return string(self._row[name], f"`{name}`")

    def _name(self, names: Sequence[str], kinds: tuple[type, ...]) -> str | None:
        """Under which name the row has a part: one that is of the right type, else one that holds anything."""
        names = [name for name in names if holds_something(self._row.get(name))]
        return next((name for name in names if isinstance(self._row[name], kinds)), names[0] if names else None)

    def _missing(self) -> RowError:
        """What the row lacks to be a conversation."""
        for name in self._names.get("messages", ()):
            value = self._row.get(name)
            if isinstance(value, Unusable):
                return value.error(f"field `{name}`")
            if value is not None:
                wrong = "empty" if isinstance(value, list) else f"{type_of(value)}, a list of turns is wanted"
                return RowError(f"`{name}` is {wrong}")
        if "text" in self._names:
            return RowError("a text without a prompt is no conversation")
        has_answer = self._name(self._answers(), (str, list)) is not None
        parts = ("messages", "instruction", "input", "prompt") if has_answer else ("messages",)
        names = [name for part in parts for name in self._names.get(part, ())]
        names += [] if has_answer else self._answers()
        empty = [name for name in names if name in self._row]
        if empty:
            return RowError(f"`{empty[0]}` is empty")
        return RowError(f"the row has no {listed(names, ' or ')}", f"its fields are {listed(list(self._row)[:10])}")


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


def _alike(turn: Turn, other: Turn) -> bool:
    """Whether two turns say the same, wherever they stand."""
    return _told(turn) == _told(other)


def _told(turn: Turn) -> tuple[Any, ...]:
    pieces = (piece.text if isinstance(piece, Content) else piece for piece in (*turn.reasoning, *(turn.said or ())))
    unlearnt = turn.role == "assistant" and turn.learnt is False
    return turn.role, [text for piece in pieces if (text := piece.strip())], turn.calls, turn.names, unlearnt
