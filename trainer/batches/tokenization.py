"""Whether a tokenizer is the one that a prepared dataset's student side was made with: it gives the same tokens."""

from typing import Any, Final

import numpy as np

from trainer.batches.documents import Documents

#: Rows that are tokenized again, spread over the dataset.
COMPARED_ROWS: Final = 64


def differing_row(documents: Documents, tokenizer: Any) -> int | None:
    """The first row found whose student tokens are not what `tokenizer` (of transformers) gives; None where all agree.

    Compared is what begins a text, and so was tokenized without regard to what came before: prompts, which follow the
    special tokens that open a row and may have lost their beginning, and texts without a prompt, which may have lost
    their end.
    """
    opening = len(documents.manifest.tokenizers["student"]["prefix"])
    rows = np.unique(np.linspace(0, len(documents) - 1, min(COMPARED_ROWS, len(documents))).astype(np.int64))
    for row, (text, start) in zip(rows.tolist(), documents.texts(rows), strict=True):
        ids, _ = documents.tokens("student", np.array([row]))
        own = tokenizer(text[:start] if start else text, add_special_tokens=False)["input_ids"]
        if start:
            prompt = ids[opening : int(documents.response_start(np.array([row]))[0])].tolist()
            same = prompt == own[len(own) - len(prompt) :]
        else:
            # a text that itself begins with the special tokens has them once
            same = any(ids[first : first + len(own)].tolist() == own[: len(ids) - first] for first in (opening, 0))
        if not same:
            return int(row)
    return None
