"""From a row that holds a conversation, or can be read as one, to the text of its contents."""

import hashlib
from typing import Any

from pipeline.read.records import Record
from pipeline.text import SEPARATOR, Rendered
from schemas.chat_rows import conversation_of
from schemas.columns import Placed
from schemas.config import ConversationsConfig, FieldsConfig, Learn
from schemas.conversations import Conversation
from schemas.part_names import names_of
from schemas.rows import RowError, row_id


class ContentsRenderer:
    """Takes the place of `pipeline.read.template.Renderer` where sides have chat templates of their own."""

    def __init__(self, fields: FieldsConfig, config: ConversationsConfig) -> None:
        """`fields` are resolved ones."""
        self._fields = fields
        self._config = config

    def identity(self) -> dict[str, Any]:
        """All that decides the text of a row."""
        return {
            "template": "contents",
            "fields": self._fields.model_dump(exclude_none=True),
            "names": {part: list(names) for part, names in names_of(self._fields).items()},
            **self._config.model_dump(exclude={"date"}),
        }

    def render(self, record: Record) -> Rendered:
        """The document of one row.

        Its id is the row's own where it has one, else the first 16 hexadecimal digits of the SHA-256 of its conversation and
        its text. Raises `RowError` for a row that cannot be used.
        """
        conversation, used, unused = conversation_of(
            record.fields,
            self._fields,
            merge_turns=self._config.merge_turns,
            system_into_user=self._config.system_into_user,
        )
        text, messages = placed(conversation)
        learnt = learnt_contents(conversation, self._config.learn)
        own = row_id(record.fields, self._fields.id)
        return Rendered(
            own or hashlib.sha256(f"{conversation.to_json()}\n{text}".encode()).hexdigest()[:16],
            text,
            tuple((messages[content].start, messages[content].end) for content in learnt),
            messages,
            conversation,
            used=tuple(sorted(used)),
            unused=tuple(sorted(unused)),
        )

    def id_of(self, record: Record) -> str | None:
        """The row's own id, if it has one that can be used."""
        try:
            return row_id(record.fields, self._fields.id)
        except RowError:
            return None


def placed(conversation: Conversation) -> tuple[str, tuple[Placed, ...]]:
    """The text of the contents, and where each stands in it."""
    placed, start = [], 0
    for content in conversation.contents:
        placed.append(Placed(content.role, start, start + len(content.text)))
        start += len(content.text) + len(SEPARATOR)
    return SEPARATOR.join(content.text for content in conversation.contents), tuple(placed)


def learnt_turns(conversation: Conversation, learn: Learn) -> list[int]:
    """Numbers of the assistant's messages that are learnt."""
    turns = conversation.turns()
    return [turn for turn in (turns[-1:] if learn == "last" else turns) if turn not in conversation.unlearnt]


def learnt_contents(conversation: Conversation, learn: Learn) -> list[int]:
    """Numbers of the contents that are learnt."""
    roles = {"assistant"} if learn == "no-reasoning" else {"assistant", "reasoning"}
    return [
        content
        for turn in learnt_turns(conversation, learn)
        for content in conversation.contents_of(turn)
        if conversation.contents[content].role in roles
    ]
