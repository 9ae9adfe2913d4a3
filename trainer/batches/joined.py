"""Rows of several datasets that answer the same prompt: partners, as losses on pairs of responses learn from them.

A prompt is what stands before a row's last response, whatever template its tokens were given. Where it stands in several
rows of a dataset, the first of them is the partner of the first in the others, the second that of the second, and so on. A
row without a prompt has no partner.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice

import numpy as np

from schemas.errors import UsageError, quoted
from trainer.batches.documents import Documents
from trainer.batches.order import Rows

#: A prompt's hash, and in how many rows before it stands.
_Key = tuple[bytes, int]


def joined(datasets: Mapping[str, tuple[Documents, int]]) -> dict[str, Rows]:
    """Rows of each dataset, by name, with partners in all others: partners stand at the same place, in the order of the
    first dataset. With each come how many of its first rows there are.

    Raises `UsageError` where no prompt is in all datasets.
    """
    places = {name: _places(documents, rows) for name, (documents, rows) in datasets.items()}
    first, *others = places.values()
    common = [key for key in first if all(key in of_dataset for of_dataset in others)]
    if not common:
        raise UsageError(_nothing_in_common({name: documents for name, (documents, _) in datasets.items()}))
    return {name: np.array([rows[key] for key in common], dtype=np.int64) for name, rows in places.items()}


def _places(documents: Documents, rows: int) -> dict[_Key, int]:
    """Where each prompt stands."""
    return {key: row for row, key in enumerate(_keys(documents, rows)) if key is not None}


def _keys(documents: Documents, rows: int) -> Iterator[_Key | None]:
    before: Counter[bytes] = Counter()
    for prompt in islice(documents.prompts(), rows):
        if not prompt:
            yield None
            continue
        digest = blake2b(prompt.encode(), digest_size=16).digest()
        yield digest, before[digest]
        before[digest] += 1


def _nothing_in_common(datasets: Mapping[str, Documents]) -> str:
    asked = [f"row 0 of {documents.folder} asks {quoted(next(documents.prompts()))}" for documents in datasets.values()]
    folders = " and ".join(str(documents.folder) for documents in datasets.values())
    return (
        f"`data.join: prompt`: {folders} have no prompt in common ({', '.join(asked)}); prepare responses to the same prompts "
        "with the same template, or leave `data.join` out to draw from each dataset by itself."
    )
