"""Rows as they stand in a shard, made again of their columns."""

from collections.abc import Sequence
from typing import Final, cast

import pyarrow as pa

from pipeline.dataset import columns as tables
from pipeline.text import Rendered
from schemas.columns import Placed
from schemas.conversations import Content, ContentRole, Conversation

#: Columns of a shard that its rows are made of again.
ROW_COLUMNS: Final = ("id", "text", "messages", "responses", "conversation")


def stored_rows(table: pa.Table) -> list[Rendered]:
    """Rows out of a shard that was written earlier (`ROW_COLUMNS`). Raises ValueError for a conversation that is none."""
    ids, texts, skeletons = (table.column(name).to_pylist() for name in ("id", "text", "conversation"))
    messages, responses = tables.messages_of(table.column("messages")), tables.spans_of(table.column("responses"))
    return [
        Rendered(id, text, tuple(map(tuple, spans.tolist())), placed, _conversation(skeleton, text, placed))
        for id, text, spans, placed, skeleton in zip(ids, texts, responses, messages, skeletons, strict=True)
    ]


def _conversation(skeleton: str, text: str, placed: Sequence[Placed]) -> Conversation | None:
    contents = [Content(cast(ContentRole, content.role), text[content.start : content.end]) for content in placed]
    return Conversation.from_json(skeleton, contents) if skeleton else None


def skeleton(row: Rendered) -> str:
    """Its `conversation` column."""
    return "" if row.conversation is None else row.conversation.to_json()
