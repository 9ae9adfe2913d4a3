"""Whether a tokenizer is the one that a prepared dataset's student side was made with: it gives the same tokens."""

from typing import Any, Final

import numpy as np

from schemas.manifest import Manifest
from schemas.rows import RowError
from trainer.batches.documents import Documents, RowText
from trainer.models.chat_template import ChatTemplate

#: Rows that are tokenized again, spread over the dataset.
COMPARED_ROWS: Final = 64


def differing_row(documents: Documents, tokenizer: Any) -> int | None:
    """The first row found whose student tokens are not what `tokenizer` (of transformers) gives; None where all agree.

    A conversation is rendered by the template of the dataset's student side, `native` being the tokenizer's own, and may
    have lost its end. Of a rendered text is compared what begins it, and so was tokenized without regard to what came
    before: prompts, which follow the special tokens that open a row and may have lost their beginning, and texts without
    a prompt, which may have lost their end.
    """
    rows = np.unique(np.linspace(0, len(documents) - 1, min(COMPARED_ROWS, len(documents))).astype(np.int64))
    manifest = documents.manifest
    template = student_template(manifest, tokenizer) if _renders(manifest, tokenizer) else None
    for row, text in zip(rows.tolist(), documents.texts(rows), strict=True):
        ids = documents.tokens("student", np.array([row]))[0].tolist()
        if text.conversation is None:
            first = int(documents.responses("student", np.array([row]))[0][0, 0])
            same = _same_text(text, ids, first, manifest, tokenizer)
        else:
            same = template is not None and _same_conversation(text, ids, manifest, template, tokenizer)
        if not same:
            return int(row)
    return None


def student_template(manifest: Manifest, tokenizer: Any) -> ChatTemplate:
    """The chat template of a dataset's student side, for a tokenizer. Raises `UserError` where there is none any more."""
    config = manifest.config
    subject = "The student's tokenizer"
    return ChatTemplate(config["student"]["template"], tokenizer, subject, config["conversations"]["date"])


def _renders(manifest: Manifest, tokenizer: Any) -> bool:
    """Whether there is a chat template for this tokenizer."""
    name = manifest.config["student"]["template"]
    return name is not None and (name != "native" or bool(tokenizer.chat_template))


def _same_conversation(
    text: RowText, ids: list[int], manifest: Manifest, template: ChatTemplate, tokenizer: Any
) -> bool:
    assert text.conversation is not None
    try:
        rendered = template.render(text.conversation)
    except RowError:
        return False
    own = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    closing = len(ids) - len(own)  # tokens behind a template that ends without one
    return ids[: len(own)] == own[: len(ids)] and closing <= len(manifest.tokenizers["student"]["suffix"])


def _same_text(text: RowText, ids: list[int], first: int, manifest: Manifest, tokenizer: Any) -> bool:
    """`first`: the response's first token."""
    opening = len(manifest.tokenizers["student"]["prefix"])
    start = text.responses[0][0]
    own = tokenizer(text.text[:start] if start else text.text, add_special_tokens=False)["input_ids"]
    if start:
        prompt = ids[opening:first]
        return bool(prompt == own[len(own) - len(prompt) :])
    # a text that itself begins with the special tokens has them once
    return any(ids[begin : begin + len(own)] == own[: len(ids) - begin] for begin in (opening, 0))
