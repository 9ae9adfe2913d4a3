"""Where the assistant's turns begin and end in a rendering.

A turn begins where the rendering of the messages before it, with the generation prompt, and that of the whole part company
behind the last mark that they share; it ends likewise, where the rendering that ends with it parts from the whole. So an
empty thought that a template puts before an answer belongs to the turn, and one that it asks for in the prompt does not.
"""

import re
from collections.abc import Container, Iterator
from functools import cached_property

from schemas.rows import RowError
from trainer.models.chat_marked import FIRST_MARK, Marked


class Turns:
    """Finds the turns of one marked rendering. `added` finds the tokenizer's added tokens, which are never cut."""

    def __init__(self, marked: Marked, added: re.Pattern[str] | None) -> None:
        self._marked = marked
        self._whole = marked.whole
        self._added = added
        self._positions: dict[str, list[int]] = {}
        self._own: dict[int | None, list[int]] = {}
        for at, message in marked.shown:
            self._positions.setdefault(self._whole[at], []).append(at)
            self._own.setdefault(message, []).append(at)
        self._roles = [message["role"] for message in marked.conversation.messages]
        self._known: dict[tuple[str, ...], int] = {}

    def spans(self) -> list[tuple[int, int]]:
        """Characters [start, end) of the marked rendering of each message of the assistant, none within another.

        Raises `RowError` where the template does not tell.
        """
        turns: list[tuple[int, int]] = []
        earliest = 0
        for message in self._marked.conversation.turns():
            start = self._start(message, earliest)
            if start is None:
                raise RowError("it does not tell where the assistant's turn begins", f"message {message + 1}")
            end = len(self._whole) if message == len(self._roles) - 1 else self._end(message, start)
            if end is None:
                raise RowError("it does not tell where the assistant's turn ends", f"message {message + 1}")
            earliest = self._behind_own(message, start)
            turns.append((start, end))
        limits = [*(start for start, _ in turns[1:]), len(self._whole)]
        bounded = [(start, min(end, limits[number])) for number, (start, end) in enumerate(turns)]
        messages = self._marked.conversation.turns()
        return [
            (start, self._own_end(message, start, end)) for message, (start, end) in zip(messages, bounded, strict=True)
        ]

    def _own_end(self, message: int, start: int, end: int) -> int:
        """Behind the first added token that follows the answer, where what others said stands before the turn's `end`.

        Raises `RowError` where none does: nobody could tell then how far the answer goes.
        """
        behind = self._behind_own(message, start)
        foreign = next((at for at, _ in self._marked.shown if behind <= at < end), None)
        if foreign is None:
            return end
        token = self._added.search(self._whole, behind, foreign) if self._added else None
        if token is None:
            raise RowError("it shows what others said behind an answer that no token ends", f"message {message + 1}")
        return token.end()

    def _start(self, message: int, earliest: int) -> int | None:
        """Between the same words as an earlier turn it begins where that did; else renderings tell."""
        first = next((at for at in self._own.get(message, ()) if at >= earliest), None)
        before = next(
            (at + 1 for at in reversed(self._own.get(message - 1, ())) if first is not None and at < first), None
        )
        literal = self._literal(before, first)
        if literal is None or before is None:
            return self._compared_start(message, earliest)
        key = ("start", self._roles[message - 1], literal)
        if key not in self._known:
            start = self._compared_start(message, earliest)
            if start is None or not before <= start <= before + len(literal):
                return start
            self._known[key] = start - before
        return before + self._known[key]

    def _end(self, message: int, start: int) -> int | None:
        """Likewise."""
        behind = self._behind_own(message, start)
        following = next((at for at in self._own.get(message + 1, ()) if at >= behind), None)
        literal = self._literal(behind, following) if behind > start else None
        if literal is None:
            return self._compared_end(message, start, behind)
        key = ("end", self._roles[message + 1], literal)
        if key not in self._known:
            end = self._compared_end(message, start, behind)
            if end is None or end > behind + len(literal):
                return end
            self._known[key] = end - behind
        return behind + self._known[key]

    def _literal(self, start: int | None, end: int | None) -> str | None:
        """The text between two marks that follow each other."""
        if start is None or end is None or any(start <= at < end for at, _ in self._marked.shown):
            return None
        return self._whole[start:end]

    def _compared_start(self, message: int, earliest: int) -> int | None:
        if not message:
            return self._behind_header(message, earliest)
        try:
            prefix = self._marked.beginning(message, add_generation_prompt=True)
        except RowError:
            return self._behind_header(message, earliest)
        for start, complete in self._shared(prefix, self._positions):
            if not complete:
                start = self._token_at(self._whole, start)[0]
            if start < earliest or not self._begins(message, start):
                continue
            return start if complete else self._behind_header(message, start, whole_header=True) or start
        return self._behind_header(message, earliest)

    def _begins(self, message: int, start: int) -> bool:
        """Whether the first mark behind `start` is of the message, if it has any."""
        following = next((owner for at, owner in self._marked.shown if at >= start), None)
        return message not in self._own or following == message

    def _compared_end(self, message: int, start: int, behind: int) -> int | None:
        try:
            prefix = self._marked.beginning(message + 1, add_generation_prompt=False)
        except RowError:
            return None
        own = {self._whole[at] for at in self._own.get(message, ())}
        for end, complete in self._shared(prefix, own or self._positions):
            if not complete:
                end = self._token_at(self._whole, end)[1]
            if end >= max(start, behind):
                return end
        return None

    def _behind_own(self, message: int, start: int) -> int:
        """Behind the last mark of a message that follows `start` before one of another message does."""
        last = start
        for at, owner in self._marked.shown:
            if at >= start and owner != message:
                break
            if at >= start:
                last = at + 1
        return last

    def _shared(self, prefix: str, marks: Container[str]) -> Iterator[tuple[int, bool]]:
        """How far the whole goes along with the end of `prefix`: places behind it, the farthest along first.

        And whether it goes along to the end. The comparison begins behind the last of these marks in `prefix`.
        """
        anchor = next((at for at in range(len(prefix) - 1, -1, -1) if prefix[at] in marks), -1)
        tail = prefix[anchor + 1 :]
        places = self._positions[prefix[anchor]] if anchor >= 0 else [-1]
        shared = [(shared_length(tail, self._whole[at + 1 : at + 1 + len(tail)]), at) for at in places]
        for length, at in sorted(shared, key=lambda pair: (-pair[0], pair[1])):
            yield at + 1 + length, length == len(tail)

    def _token_at(self, text: str, position: int) -> tuple[int, int]:
        """Bounds of the added token (`<|end|>`) in the midst of which a position lies; else the position twice."""
        for token in self._added.finditer(text) if self._added else ():
            if token.start() < position < token.end():
                return token.span()
        return position, position

    def _behind_header(self, message: int, earliest: int, whole_header: bool = False) -> int | None:
        """The start of a turn by the header that the template gives an answer to a question.

        For a conversation that the assistant opens, and templates that cannot render what stands before a turn. Without
        `whole_header` a header that begins the text may lack its white space.
        """
        first = next((at for at in self._own.get(message, ()) if at >= earliest), None)
        if first is None or self._header is None or (whole_header and not self._header.strip()):
            return None
        begin = max([earliest, *(at + 1 for at, _ in self._marked.shown if at < first)])
        for header in dict.fromkeys([self._header, self._header if whole_header else self._header.lstrip()]):
            at = self._whole.rfind(header, begin, first)
            if at >= 0:
                return at + len(header)
        return None

    @cached_property
    def _header(self) -> str | None:
        """What the template writes between a question and its answer because an answer follows; None: it takes neither."""
        question, answer = chr(FIRST_MARK), chr(FIRST_MARK + 1)
        try:
            end, prompt, whole = (
                self._marked.exchange(question, said, prompted).rpartition(question)[2]
                for said, prompted in ((None, False), (None, True), (answer, False))
            )
        except RowError:
            return None
        begin = shared_length(end, prompt)
        if begin < len(end):
            begin = self._token_at(prompt, begin)[1]
        return prompt[begin : shared_length(prompt, whole)]


def shared_length(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))
