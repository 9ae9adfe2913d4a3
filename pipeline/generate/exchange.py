"""From a row to what its model is asked, and from the response to a row that `mta-prep parse` reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.generate.fields import USUAL, Naming
from pipeline.read.records import Record
from schemas.chat_rows import conversation_of
from schemas.config import GenerateConfig
from schemas.conversations import Conversation
from schemas.part_names import INPUTS
from schemas.rows import RowError, row_id
from trainer.evaluation.answers import with_its_opening
from trainer.evaluation.prompts import Asked, Prompter
from trainer.evaluation.questions import Reading, asked_by, holds_turns

#: What a single prompt is made of.
_ASKED: Final = ("prompt", "instruction", *INPUTS)
#: Whether a response ended by itself.
FINISHED: Final = "finished"


@dataclass(frozen=True)
class Exchange:
    """A row that can be asked. Its answered row has its id, what it asks under the usual names, and the response: nothing
    else of it."""

    record: Record
    fields: Mapping[str, Any]  # by their usual names
    id: str | None
    question: str | Conversation
    asked: Asked

    def answered(self, response: str, finished: bool) -> dict[str, Any]:
        """A single prompt with `output`, or `messages` with the assistant's turn. Raises `RowError` if `parse` would not
        take it: for a response of nothing, or of reasoning alone."""
        own = {} if self.id is None else {"id": self.id}
        if isinstance(self.question, str):
            if not response.strip():
                raise RowError("the response is empty")
            fields = self.fields
            given = {
                name: fields[name] for name in _ASKED if isinstance(fields.get(name), str) and fields[name].strip()
            }
            return own | given | {"output": response, FINISHED: finished}
        turn = {"role": "assistant", "content": with_its_opening(response, self.asked.thinking)}
        row = own | {"messages": [*_turns(self.question), turn]}
        if self.question.tools:
            row["tools"] = list(self.question.tools)
        try:
            conversation_of(row)
        except RowError as error:
            raise RowError("the response is no turn of a conversation", str(error.reason)) from None
        return row | {FINISHED: finished}


def exchange_of(record: Record, reading: Reading, prompter: Prompter | None, naming: Naming = USUAL) -> Exchange:
    """What a row asks, in the fields that the naming says; without a prompter (and its tokens), whether it asks anything.

    Raises `RowError` for a row that asks nothing, or in a way that the template does not take, or for too long.
    """
    fields = naming.read(record.fields)
    if holds_turns(fields) and not reading.as_conversations:
        raise RowError(
            "a conversation among single prompts", "none of the first rows is one; --template asks all as such"
        )
    question = asked_by(fields, reading)
    own = row_id(fields)
    if prompter is None:
        return Exchange(record, fields, own, question, Asked((), False, False))
    asked = prompter.asked(question)
    if asked.was_cut:
        raise RowError(
            "the prompt is too long", f"more than {prompter.max_length} tokens, which leave room for a response"
        )
    return Exchange(record, fields, own, question, asked)


def reading_of(config: GenerateConfig) -> Reading:
    """How rows are read."""
    return Reading(config.conversations, config.merge_turns, config.system_into_user)


def id_of(record: Record, naming: Naming) -> str | None:
    """The row's own id, if it has one that can be used."""
    try:
        return row_id(naming.read(record.fields))
    except RowError:
        return None


def _turns(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages; those of the assistant that are not to be learnt say so."""
    return [
        message | ({"train": False} if number in conversation.unlearnt else {})
        for number, message in enumerate(conversation.filled())
    ]
