"""What ends an answer in a chat template: the token at which a model that learned from it stops."""

from typing import Any, NamedTuple

from schemas.conversations import Content, Conversation
from schemas.rows import RowError
from trainer.models.chat_template import ChatTemplate


class Ending(NamedTuple):
    """What a template writes behind an answer."""

    text: str  # before the first special token, or all of it; no white space around it
    special: tuple[int, ...]  # ids of the special tokens, in order


def ending_of(template: ChatTemplate, tokenizer: Any) -> Ending:
    """What follows the answer of a short conversation; nothing where the template does not take that.

    `tokenizer` is the template's own (transformers.PreTrainedTokenizerBase).
    """
    contents = Content("user", "a"), Content("assistant", "b")
    messages = {"role": "user", "content": [0]}, {"role": "assistant", "content": [1]}
    try:
        layout = template.layout(Conversation(messages, contents))
    except RowError:
        return Ending("", ())
    behind = layout.text[int(layout.endings[-1]) : int(layout.turns[-1, 1])]
    known = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    known.update(tokenizer.all_special_ids)
    special = tuple(index for index in tokenizer(behind, add_special_tokens=False)["input_ids"] if index in known)
    text = behind.partition(tokenizer.convert_ids_to_tokens(special[0]))[0] if special else behind
    return Ending(text.strip(), special)
