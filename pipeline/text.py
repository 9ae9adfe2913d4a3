"""What a parser is given and what it gives back, and the protocol every parser follows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from schemas.columns import Placed
from schemas.conversations import Conversation

#: Stands between the contents of a conversation in its text.
SEPARATOR: Final = "\n\n"


@dataclass(frozen=True)
class Rendered:
    """A row's text, and what of it is learnt: a rendered prompt with its response, or the contents of a conversation.

    All are characters of `text`, half-open.
    """

    id: str
    text: str
    responses: tuple[tuple[int, int], ...]
    messages: tuple[Placed, ...] = ()  # of a conversation, each of its contents
    conversation: Conversation | None = None
    used: tuple[str, ...] = ()  # fields of the row that it was made of
    unused: tuple[str, ...] = ()  # what was left out of it

    @property
    def response_start(self) -> int:
        """Where the response of a rendered text begins; 0 for a text without a prompt."""
        return self.responses[0][0]

    @property
    def borders(self) -> tuple[int, ...]:
        """Characters, rising, that no sentence and no unit reaches over."""
        if self.conversation is None:
            return (self.response_start,) if self.response_start else ()
        return tuple(message.start for message in self.messages[1:])


@dataclass(frozen=True)
class Words:
    """A sentence as a parser sees it: tokens, and whether white space follows each."""

    words: tuple[str, ...]
    space_after: tuple[bool, ...]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a document: the parser's tokens and where they stand in the text.

    Tokens are never empty or white space. `parse` is False where there is nothing to parse (fenced code); such a
    sentence has words but no phrases. `names` are the tokens that are no words and stand for a noun (formulas, code,
    addresses); a formula may hold spaces.
    """

    words: Words
    spans: Int32[np.ndarray, "tokens 2"]  # characters
    parse: bool = True
    names: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Document:
    """A text cut into sentences and words."""

    text: str
    sentences: tuple[Sentence, ...]
    sentence_spans: Int32[np.ndarray, "sentences 2"]  # characters, one for one with `sentences`
    word_spans: Int32[np.ndarray, "words 2"]  # characters: the `words` column


@dataclass(frozen=True)
class Constituents:
    """A tree as labelled spans over a sentence's tokens, in pre-order, unary chains as several equal spans.

    No span for the root wrapper (TOP) and none for part-of-speech tags. A one-word sentence may have none.
    """

    spans: Int32[np.ndarray, "nodes 2"]  # tokens
    labels: tuple[str, ...]
    tags: tuple[str, ...] | None = None  # one a token, if the model tags


@dataclass(frozen=True)
class Units:
    """Units of one document, as character spans sorted by (start, -end)."""

    chunks: Int32[np.ndarray, "chunks 2"]
    chunk_labels: tuple[str, ...]
    phrases: Int32[np.ndarray, "phrases 2"]
    phrase_labels: tuple[str, ...]
    trees: tuple[str, ...] | None = None  # one a sentence, if kept
    counts: Counter[str] = field(default_factory=Counter)  # sentences parsed, split, left unparsed (by reason)


@runtime_checkable
class Parser(Protocol):
    """Finds units in documents; what it finds depends on nothing but the documents of the call and the config."""

    def identity(self) -> dict[str, Any]:
        """Name, hash and versions of all that decides the output; goes into the manifest."""
        ...

    def extract(self, documents: Sequence[Document]) -> list[Units]:
        """Units of each document."""
        ...

    def load(self) -> None:
        """Load now what is loaded only once there is enough to do, so that time can be taken."""
        ...
