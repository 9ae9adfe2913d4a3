"""Whether a student can read a dataset: known before the first step, and the same on every rank."""

import shlex

import numpy as np

from schemas.columns import Side
from schemas.console import counted
from schemas.errors import UsageError
from trainer.batches.documents import Documents
from trainer.student.model import Student


def require_vocabulary(student: Student, documents: Documents) -> None:
    """Raises `UsageError` if the dataset has tokens that the student does not know."""
    if documents.largest_student_id >= student.vocab_size:
        again = shlex.join(["mta-prep", "align", str(documents.folder), "--student", "TOKENIZER", "-o", "NEW"])
        raise UsageError(
            f"{documents.folder} has the student token {documents.largest_student_id}, and the student knows "
            f"{student.vocab_size} tokens: it was prepared for another tokenizer. "
            f"`{again}` prepares it for this one."
        )


def require_lengths(student: Student, documents: Documents, rows: int, same_tokens: bool) -> None:
    """Raises `UsageError` if one of the first `rows` rows is longer than the student takes.

    `same_tokens`: whether terms of the loss need the teacher to have the student's tokens, and so the same limit.
    """
    if student.max_length is None:
        return
    lengths = documents.lengths("student")[:rows]
    long = np.flatnonzero(lengths > student.max_length)
    if not len(long):
        return
    row = int(long[0])
    sides: tuple[Side, ...] = ("teacher", "student") if same_tokens else ("student",)
    config = documents.manifest.config
    command = documents.align_command({side: config[side] | {"max_length": student.max_length} for side in sides})
    remade = ", for which caches are then made anew" if same_tokens else ""
    raise UsageError(
        f"{counted(len(long), 'row')} of {documents.folder} {'is' if len(long) == 1 else 'are'} longer than the student "
        f"({student.architecture}) takes, which is {student.max_length} tokens: row {row} ({documents.ids[row].as_py()!r}) "
        f"has {lengths[row]}. `{command}` makes a dataset with that limit{remade}."
    )
