"""Whether a teacher and a prepared dataset belong together: the teacher's own tokenizer gives the dataset's tokens."""

import shlex
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa
import transformers
from transformers.utils import cached_file

from pipeline.cache.documents import TeacherSide
from pipeline.cache.measure import Measured
from pipeline.dataset.rows import ROW_COLUMNS, stored_rows
from pipeline.read.chat_tokenizer import open_tokenizer
from pipeline.read.tokenizers import OffsetTokenizer
from schemas.columns import MISSING, side_column
from schemas.config import ModelConfig, ParseConfig
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.rows import Reason
from trainer.models.chat_template import NoTemplateError
from trainer.models.hub import ModelFiles, first_line, locate
from trainer.models.tokenizer import TOKENIZER_FILES
from trainer.teacher.shape import TeacherShape

#: Rows that are tokenized again, spread over the dataset.
SAMPLED_ROWS: Final = 64
#: What stands for bytes that are no whole character.
REPLACEMENT: Final = "\ufffd"


def require_match(
    teacher: ModelConfig, shape: TeacherShape, dataset: Manifest, documents: TeacherSide, measured: Measured
) -> str | None:
    """Raises `UserError` if the dataset's teacher tokens are not this teacher's; else what could not be looked at."""
    source = locate(teacher)
    name = teacher.model if source.gguf_file is None else "TOKENIZER"
    again = shlex.join(["mta-prep", "align", str(documents.folder), "--teacher", name, "-o", "NEW"])
    command = f"`{again}` makes a dataset for it."
    if measured.largest_id >= shape.vocabulary:
        raise UserError(
            f"The dataset {documents.folder} has the teacher token {measured.largest_id}, and the teacher "
            f"{teacher.model!r} knows only {shape.vocabulary} tokens: it was prepared for another teacher. {command}"
        )
    own = _tokenizer(source, teacher, ParseConfig.parse(dataset.config, str(documents.folder)))
    if isinstance(own, str):
        return own
    tokenizer, vocabulary = own
    split_otherwise = 0
    rows = np.unique(np.linspace(0, documents.rows - 1, SAMPLED_ROWS).astype(int)).tolist()
    for row in rows:
        table = _table(documents, row)
        stored = table.to_pylist()[0]
        (encoding,) = tokenizer.encode(stored_rows(table))
        mine: list[int] = stored[side_column("teacher", "input_ids")]
        theirs: list[int] = [] if isinstance(encoding, Reason) else encoding.input_ids.tolist()
        place = _first_difference(mine, theirs)
        if place is None:
            continue
        if vocabulary is None or not _spells(vocabulary, stored):
            ids = [str(each[place]) if place < len(each) else "nothing" for each in (mine, theirs)]
            raise UserError(
                f"The dataset {documents.folder} was prepared for another teacher: token {place} of its row "
                f"{stored['id']!r} is {ids[0]}, and the tokenizer of {teacher.model!r} gives {ids[1]}. {command}"
            )
        split_otherwise += 1
    if split_otherwise:
        return (
            f"The tokenizer read from {teacher.model} splits {split_otherwise} of {len(rows)} compared rows into other "
            "tokens than the dataset has, though it spells all of the dataset's as their texts do. A GGUF file does not "
            "tell all of how text is split; make sure that the dataset was prepared with this teacher's own tokenizer."
        )
    return None


def _tokenizer(source: ModelFiles, teacher: ModelConfig, config: ParseConfig) -> tuple[OffsetTokenizer, Any] | str:
    """The tokenizer that comes with the model, under the dataset's limits; or why there is none.

    Beside that of a GGUF file, the library's own form of it: its vocabulary can be relied on, the way it splits text
    cannot (only the name of a rule is in the file, and some are not known to the library). Else None.
    """
    name = Path(source.name)
    without = (
        f"{teacher.model} comes without a tokenizer in a form that can be read here, so the dataset's tokens were not "
        "compared with its own."
    )
    if source.gguf_file is not None:
        try:
            return _of_gguf(source, config)
        except Exception as error:  # the library raises anything from KeyError to NotImplementedError
            return f"{without} (Reading it from the GGUF file: {first_line(error)})"
    if name.is_dir() and not any((name / file).is_file() for file in TOKENIZER_FILES):
        return without
    side = config.teacher.model_copy(update={"tokenizer": source.name, "revision": source.revision})
    try:
        return open_tokenizer("teacher", side, config), None
    except NoTemplateError:
        return (
            f"{teacher.model} comes without a chat template, so the dataset's tokens were not compared with those that it "
            "would read."
        )


def _of_gguf(source: ModelFiles, config: ParseConfig) -> tuple[OffsetTokenizer, Any]:
    file = cached_file(source.name, str(source.gguf_file), revision=source.revision, local_files_only=source.local_only)
    with TemporaryDirectory() as folder:
        # alone in a folder: the library would rather take a tokenizer.json that lies beside it
        (Path(folder) / "model.gguf").symlink_to(Path(str(file)).absolute())
        built = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
        built.save_pretrained(Path(folder) / "saved")
        side = config.teacher.model_copy(update={"tokenizer": str(Path(folder) / "saved"), "revision": None})
        return open_tokenizer("teacher", side, config), built


def _spells(vocabulary: Any, stored: dict[str, Any]) -> bool:
    """Whether every token of a row is, in this vocabulary, what the dataset says it stands for in the text.

    Surrounding space aside, and modulo compatibility forms. Special tokens, and tokens that hold only a part of some
    character, are passed over.
    """
    ids, offsets = (stored[side_column("teacher", name)] for name in ("input_ids", "offsets"))
    for token, (start, end) in zip(ids, offsets, strict=True):
        spelled = vocabulary.decode([token])
        if start == MISSING or REPLACEMENT in spelled:
            continue
        mine, theirs = (unicodedata.normalize("NFKC", each).strip() for each in (stored["text"][start:end], spelled))
        if mine != theirs:
            return False
    return True


def _table(documents: TeacherSide, row: int) -> pa.Table:
    """One row."""
    columns = [*ROW_COLUMNS, *(side_column("teacher", name) for name in ("input_ids", "offsets"))]
    (table,) = documents.tables(columns, row, row + 1)
    return table


def _first_difference(mine: list[int], theirs: list[int]) -> int | None:
    same = min(len(mine), len(theirs))
    differ = np.flatnonzero(np.asarray(mine[:same]) != np.asarray(theirs[:same]))
    if len(differ):
        return int(differ[0])
    return None if len(mine) == len(theirs) else same
