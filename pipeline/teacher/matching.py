"""Whether a teacher and a prepared dataset belong together: the teacher's own tokenizer gives the dataset's tokens."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import transformers

from pipeline.read.loading import TOKENIZER_FILES
from pipeline.read.tokenizers import OffsetTokenizer
from pipeline.teacher.documents import Documents
from pipeline.teacher.planning import Measured
from pipeline.teacher.settings import TeacherShape
from schemas.columns import side_column
from schemas.config import ParseConfig, SideConfig, TeacherConfig
from schemas.errors import UserError
from schemas.manifest import Manifest
from trainer.source import locate
from trainer.teacher import explained

#: Rows that are tokenized again, spread over the dataset.
SAMPLED_ROWS: Final = 64
#: Of a tokenizer's identity, what says nothing of the tokens that it gives.
_NAMES: Final = frozenset({"name", "revision"})


def describe(config: TeacherConfig) -> TeacherShape:
    """What the model's config says of it. Reads no weights; raises `UserError` if there is no such model."""
    source = locate(config)
    try:
        description = transformers.AutoConfig.from_pretrained(source.name, **source.options(config))
    except Exception as error:  # bad files make the library raise anything from KeyError to RuntimeError
        raise explained(error, f"The teacher {config.model!r}", config, source) from error
    text = description.get_text_config(decoder=True)
    architectures = description.architectures or (type(description).__name__,)
    own = "float32" if source.gguf_file is not None else str(description.dtype or "float32").removeprefix("torch.")
    return TeacherShape(
        depth=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        architecture=str(architectures[0]),
        dtype=own if config.dtype == "auto" else config.dtype,
    )


def same_tokens(manifest: Manifest) -> bool:
    """Whether teacher and student of a dataset have the same tokens, limits included."""
    teacher, student = (
        {key: value for key, value in manifest.tokenizers[side].items() if key not in _NAMES}
        for side in ("teacher", "student")
    )
    return teacher == student


def require_match(
    teacher: TeacherConfig, shape: TeacherShape, dataset: Manifest, documents: Documents, measured: Measured
) -> str | None:
    """Raises `UserError` if the dataset's teacher tokens are not this teacher's; else what could not be looked at."""
    command = f"`mta-prep align {documents.folder} --teacher {teacher.model} -o NEW` makes a dataset for it."
    if measured.largest_id >= shape.vocabulary:
        raise UserError(
            f"The dataset {documents.folder} has the teacher token {measured.largest_id}, and the teacher "
            f"{teacher.model!r} knows only {shape.vocabulary} tokens: it was prepared for another teacher. {command}"
        )
    side = _tokenizer(teacher, dataset)
    if side is None:
        return (
            f"{teacher.model} comes without a tokenizer in a form that can be read here, so the dataset's tokens were "
            "not compared with its own."
        )
    tokenizer = OffsetTokenizer("teacher", side, ParseConfig.parse(dataset.config, str(documents.folder)).overflow)
    for row in np.unique(np.linspace(0, documents.rows - 1, SAMPLED_ROWS).astype(int)).tolist():
        stored = _row(documents, row)
        (found,) = tokenizer.encode([stored["text"]], [stored["response_start"]])
        mine: list[int] = stored[side_column("teacher", "input_ids")]
        theirs: list[int] = [] if isinstance(found, str) else found.input_ids.tolist()
        place = _first_difference(mine, theirs)
        if place is not None:
            ids = [str(each[place]) if place < len(each) else "nothing" for each in (mine, theirs)]
            raise UserError(
                f"The dataset {documents.folder} was prepared for another teacher: token {place} of its row "
                f"{stored['id']!r} is {ids[0]}, and the tokenizer of {teacher.model!r} gives {ids[1]}. {command}"
            )
    return None


def _tokenizer(teacher: TeacherConfig, dataset: Manifest) -> SideConfig | None:
    """The tokenizer that comes with the model, under the dataset's limits; None where there is none to load."""
    source = locate(teacher)
    folder = Path(source.name)
    if source.gguf_file is not None or (
        folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES)
    ):
        return None
    settings = ParseConfig.parse(dataset.config, "the dataset").teacher
    return settings.model_copy(update={"tokenizer": source.name, "revision": source.revision})


def _row(documents: Documents, row: int) -> dict[str, Any]:
    columns = ["id", "text", "response_start", side_column("teacher", "input_ids")]
    (table,) = documents.tables(columns, row, row + 1)
    found: dict[str, Any] = table.to_pylist()[0]
    return found


def _first_difference(mine: list[int], theirs: list[int]) -> int | None:
    same = min(len(mine), len(theirs))
    differ = np.flatnonzero(np.asarray(mine[:same]) != np.asarray(theirs[:same]))
    if len(differ):
        return int(differ[0])
    return None if len(mine) == len(theirs) else same
