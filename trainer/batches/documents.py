"""A prepared dataset as training reads it: any rows of it, off memory-mapped Arrow files, nothing touched but what is asked for.

The files are opened with pyarrow alone: `datasets` would serve as well, but takes seconds and 100 MB to import in every
worker.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from schemas.columns import GRANULARITIES, MINED, MISSING, SIDES, Granularity, Side, side_column
from schemas.config import Mined
from schemas.conversations import Content, Conversation
from schemas.dataset import damaged, open_shard
from schemas.errors import UserError
from schemas.manifest import read_manifest, same_tokens
from trainer.batches.batch import Batch, Chunks, TeacherTokens
from trainer.batches.lists import Lists, Rows, list_values
from trainer.batches.mined import Inputs, mined_pairs, same_inputs, same_prefixes
from trainer.batches.shared_tokens import BothSides, SharedSpans
from trainer.batches.units import SharedUnits, positions_of, shared_units
from trainer.batches.vocabulary import Vocabulary
from trainer.maths.alignment import Counts, LearntTexts, LearntTokens
from trainer.maths.geometry import Units, units_with_span

#: What is mapped of a dataset for batches.
_COLUMNS: Final = [
    "id",
    "responses",
    *(side_column(side, name) for side in SIDES for name in ("input_ids", "offsets", "responses", *GRANULARITIES)),
]


#: The two sides as batches have them.
_STUDENT_FIRST: Final[tuple[Side, Side]] = ("student", "teacher")
#: What a row is before any tokenizer.
_TEXT_COLUMNS: Final = ("text", "responses", "messages", "conversation")


@dataclass(frozen=True)
class LeftOut:
    """Units of one granularity that training does without, since a side has no faithful span of them."""

    units: int  # all
    teacher: int  # without a span on the teacher's side
    student: int  # on the student's
    either: int  # on either: those left out


class RowText(NamedTuple):
    """A row as it was read, before any tokenizer."""

    text: str
    responses: list[list[int]]  # [start, end) in `text`
    conversation: Conversation | None  # whose contents the text is; None: a rendered text


def _row_text(text: str, responses: list[list[int]], messages: list[dict[str, Any]], skeleton: str) -> RowText:
    """Raises ValueError for a conversation that is none."""
    contents = [Content(each["role"], text[each["start"] : each["end"]]) for each in messages]
    return RowText(text, responses, Conversation.from_json(skeleton, contents) if skeleton else None)


class Documents:
    """The rows of a finished dataset, from 0, or its first `limit`. May be forked, and pickled: it opens its files anew.

    Raises `StateError` for a folder that is unfinished, or damaged as far as can be seen without reading it through: the
    structure of what is mapped is validated, values within it are taken at their word. With `verify`, every file is read
    through first, and its checksum compared.
    """

    def __init__(self, folder: str | Path, limit: int | None = None, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self.manifest = read_manifest(self.folder)
        for file in self.manifest.files:
            problem = file.problem(self.folder, content=verify)
            if problem is not None:
                raise damaged(self.folder, f"{file.file} {problem}")
        if sum(shard.rows for shard in self.manifest.shards) != self.manifest.rows_out:
            raise damaged(self.folder, "its shards do not add up to the rows of its manifest")
        self.rows = min(self.manifest.rows_out, limit or self.manifest.rows_out)

    def __reduce__(self) -> tuple[type["Documents"], tuple[Path, int | None]]:
        return type(self), (self.folder, self.limit)

    def __len__(self) -> int:
        return self.rows

    @property
    def same_tokens(self) -> bool:
        """Whether teacher and student have the same tokens."""
        return same_tokens(self.manifest)

    @property
    def ids(self) -> pa.ChunkedArray:
        """Ids of the rows, in the mapped files."""
        return self._table.column("id").slice(0, self.rows)

    @cached_property
    def largest_student_id(self) -> int:
        """The largest of the student's token ids; -1 where there is no token."""
        name = side_column("student", "input_ids")
        column = self._table.column(name).slice(0, self.rows)
        bounds = [pc.min_max(ids).as_py() for chunk in column.chunks if len(ids := chunk.flatten())]
        if any(each["min"] < 0 for each in bounds):
            raise damaged(self.folder, f"its column `{name}` has ids below 0")
        return max((each["max"] for each in bounds), default=-1)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Both sides' tokens; None in a dataset of an older version, which does not say."""
        if self.manifest.vocabulary is None:
            return None
        if (problem := self.manifest.vocabulary_problem(self.folder)) is not None:
            raise damaged(self.folder, problem)
        try:
            return Vocabulary.read(self.folder)
        except ValueError as error:
            raise damaged(self.folder, str(error)) from None

    def require_vocabulary(self, what: str) -> Vocabulary:
        """Both sides' tokens. Raises `UserError` where the dataset does not say; `what` needs them: `The term `x``."""
        if self.vocabulary is None:
            again = self.align_command({"student": self.manifest.config["student"]})
            raise UserError(
                f"{what} needs to know which tokens both vocabularies have, and {self.folder} is older than that: `{again}` "
                "makes one that says so, without parsing."
            )
        return self.vocabulary

    def require_mined(self, what: str, vocabulary: Mined) -> None:
        """Raises `UserError` where MinED's alignment is not stored, or not of this vocabulary; `what` needs it."""
        stored = self.manifest.config.get("mined")
        if stored is None or (stored == "exact" and vocabulary == "nearest"):
            again = shlex.join(["mta-prep", "align", str(self.folder), "--mined", vocabulary, "-o", "NEW"])
            lacks = "which tokens are nearest to which" if stored else "tokens aligned by edit distance (MinED)"
            raise UserError(f"{what} needs {lacks}, and {self.folder} lacks that: `{again}` adds it, without parsing.")

    def lengths(self, side: Side) -> Int64[np.ndarray, " rows"]:
        """Tokens of every row."""
        return self._lists(side_column(side, "input_ids")).lengths[: self.rows]

    def align_command(self, sides: Mapping[Side, Mapping[str, Any]]) -> str:
        """The command for the same texts in a folder NEW with other tokenizers or limits: a side's config for each side.

        The command has one limit for all sides, so theirs must be the same; the last side's are taken.
        """
        words = ["mta-prep", "align", str(self.folder)]
        limits: dict[str, Any] = {}
        for side, config in sides.items():
            words += [f"--{side}", config["tokenizer"]]
            words += [] if config["revision"] is None else [f"--{side}-revision", config["revision"]]
            limits = {f"--{name.replace('_', '-')}": config[name] for name in ("max_length", "max_prompt_length")}
        words += [word for flag, value in limits.items() if value is not None for word in (flag, str(value))]
        return shlex.join([*words, "-o", "NEW"])

    def left_out(self, granularity: Granularity) -> LeftOut:
        """How many units of all rows have no span, by side."""
        self._unit_lists(granularity)
        columns = [self._table.column(side_column(side, granularity)).slice(0, self.rows) for side in SIDES]
        units = teacher = student = either = 0
        for chunks in zip(*(column.chunks for column in columns), strict=True):
            no_teacher, no_student = (list_values(chunk.flatten())[:, 0] == MISSING for chunk in chunks)
            units += len(no_teacher)
            teacher += int(no_teacher.sum())
            student += int(no_student.sum())
            either += int((no_teacher | no_student).sum())
        return LeftOut(units, teacher, student, either)

    def batch(self, rows: Rows) -> Batch:
        """The student's side of some rows."""
        if len(rows) == 0 or rows.min() < 0 or rows.max() >= self.rows:
            raise ValueError(f"rows {rows.tolist()} of a dataset with rows 0 to {self.rows - 1}")
        ids, token_rows = self.tokens("student", rows)
        positions, position_rows = positions_of(token_rows, *self.responses("student", rows))
        flat = torch.from_numpy(ids.astype(np.int64))
        return Batch(torch.from_numpy(rows), flat, token_rows, positions, position_rows, flat[positions + 1])

    def teacher_tokens(self, rows: Rows) -> TeacherTokens:
        """The teacher's own tokens of some rows, and what is learnt of them; without its states."""
        ids, token_rows = self.tokens("teacher", rows)
        positions, position_rows = positions_of(token_rows, *self.responses("teacher", rows))
        flat = torch.from_numpy(ids.astype(np.int64))
        return TeacherTokens(flat, token_rows, positions, position_rows, flat[positions + 1])

    def tokens(self, side: Side, rows: Rows) -> tuple[Int32[np.ndarray, " tokens"], Int64[Tensor, " pointers"]]:
        """Token ids of some rows, one after the other, and their row pointers."""
        return self._lists(side_column(side, "input_ids")).take(rows)

    def texts(self, rows: Rows) -> list["RowText"]:
        """Some rows as they were read, before any tokenizer."""
        columns = [self._texts.column(name) for name in _TEXT_COLUMNS]
        try:
            return [_row_text(*(column[row].as_py() for column in columns)) for row in rows.tolist()]
        except UnicodeDecodeError:
            raise damaged(self.folder, "a text of its rows is not UTF-8") from None
        except ValueError as error:
            raise damaged(self.folder, f"its column `conversation` holds something else ({error})") from None

    def prompts(self) -> Iterator[str]:
        """Of every row, in their order, what stands before its last response."""
        rows = self._texts.select(["text", "responses"]).slice(0, self.rows)
        try:
            for part in rows.to_batches():
                for text, responses in zip(part["text"].to_pylist(), part["responses"].to_pylist(), strict=True):
                    yield text[: responses[-1][0]]
        except UnicodeDecodeError:
            raise damaged(self.folder, "a text of its rows is not UTF-8") from None
        except IndexError:
            raise damaged(self.folder, "its column `responses` has spans that its rows cannot have") from None

    def responses(self, side: Side, rows: Rows) -> tuple[Int32[Tensor, "spans 2"], Int64[Tensor, " pointers"]]:
        """What is learnt of some rows: spans of a side's tokens, each counted from its row's first, and row pointers."""
        spans, span_rows = self._response_lists(side).take(rows)
        return torch.from_numpy(spans), span_rows

    def common_spans(self, rows: Rows, max_spans: int) -> SharedSpans:
        """Spans of what is learnt of some rows that begin and end in both tokenizations, at most `max_spans` of each row."""
        return self.both_sides(rows).spans(max_spans)

    def exact_pairs(self, rows: Rows) -> Int64[Tensor, "pairs 2"]:
        """Positions of the student and of the teacher whose next tokens are the same text of some rows (`Batch.pairs`)."""
        return self.both_sides(rows).pairs(*self._positions(rows))

    def chunks(self, rows: Rows) -> Chunks:
        """Parts of what is learnt of some rows that begin and end in both tokenizations (`Batch.chunks`)."""
        both = self.both_sides(rows)
        return both.chunks(*self._positions(rows), self._bytes_of(rows, both))

    def _positions(self, rows: Rows) -> tuple[Int64[Tensor, " positions"], Int64[Tensor, " teacher_positions"]]:
        """The student's and the teacher's, of some rows."""
        student, teacher = (
            positions_of(self._lists(side_column(side, "input_ids")).pointers(rows), *self.responses(side, rows))[0]
            for side in _STUDENT_FIRST
        )
        return student, teacher

    def spelled(self, rows: Rows) -> tuple[int, int]:
        """Of how many learnt texts of some rows it is known that both sides' tokens spell them byte for byte, and of how many."""
        both = self.both_sides(rows)
        sizes = self._bytes_of(rows, both)
        return 0 if sizes is None else both.spelled(sizes), len(both.texts.spans)

    def _bytes_of(self, rows: Rows, both: BothSides) -> tuple[Counts, Counts] | None:
        """Bytes of each side's learnt tokens; None in a dataset of an older version, which does not say."""
        if self.vocabulary is None:
            return None
        sizes = []
        for side, tokens in zip(_STUDENT_FIRST, (both.student, both.teacher), strict=True):
            ids, lengths = self.tokens(side, rows)[0][tokens.places], self.vocabulary.lengths[side]
            if ids.max(initial=0) >= len(lengths):
                raise damaged(
                    self.folder, f"its column `{side_column(side, 'input_ids')}` has ids beyond its vocabulary"
                )
            sizes.append(lengths[ids])
        return sizes[0], sizes[1]

    def mined_pairs(self, rows: Rows, vocabulary: Mined, same_prefix: bool) -> Int64[Tensor, "mined 2"]:
        """Positions of the student and of the teacher that MinED has aligned in some rows (`Batch.mined`).

        Those whose tokens are the same by `vocabulary`, and with `same_prefix` those where both have read the same text.
        """
        known = self.require_vocabulary("MinED's alignment")
        student, teacher = (self._inputs(side, rows) for side in ("student", "teacher"))
        try:
            partners, partner_rows = self._mined.take(rows)
            pairs = mined_pairs(partners, partner_rows.numpy(), student, teacher)
        except ValueError as error:
            raise damaged(self.folder, f"its column `{MINED[0]}` {error}") from None
        taken_for = np.arange(len(known.lengths["teacher"])) if self.same_tokens else known.taken_for(vocabulary)
        pairs = pairs[same_inputs(pairs, student, teacher, taken_for)]
        if same_prefix:
            counts = known.lengths["student"][student.ids], known.lengths["teacher"][teacher.ids]
            pairs = pairs[same_prefixes(pairs, student, teacher, *self.both_sides(rows).prefixes(*counts))]
        return torch.from_numpy(pairs)

    def _inputs(self, side: Side, rows: Rows) -> Inputs:
        ids, token_rows = self.tokens(side, rows)
        positions, position_rows = positions_of(token_rows, *self.responses(side, rows))
        return Inputs(ids, token_rows.numpy(), positions.numpy(), position_rows.numpy())

    def both_sides(self, rows: Rows) -> BothSides:
        """What is learnt of some rows, and both sides' tokens of it."""
        texts = self._learnt_texts(rows)
        lengths = np.diff(texts.characters) - 1
        return BothSides(texts, *(self._learnt_tokens(side, rows, texts, lengths) for side in _STUDENT_FIRST))

    def _learnt_texts(self, rows: Rows) -> LearntTexts:
        try:
            texts = [self._texts.column("text")[row].as_py() for row in rows.tolist()]
        except UnicodeDecodeError:
            raise damaged(self.folder, "a text of its rows is not UTF-8") from None
        spans, span_rows = self._lists("responses").take(rows)
        lengths = np.repeat([len(text) for text in texts], span_rows.diff().numpy())
        if _outside(spans, lengths).any():
            raise damaged(self.folder, "its column `responses` has spans outside of their rows")
        return LearntTexts.of(texts, spans, span_rows.numpy())

    def _learnt_tokens(
        self, side: Side, rows: Rows, texts: LearntTexts, lengths: Int64[np.ndarray, " documents"]
    ) -> LearntTokens:
        """`lengths`: characters of each row's text."""
        offsets, token_rows = self._lists(side_column(side, "offsets")).take(rows)
        turns, turn_rows = self.responses(side, rows)
        counts = token_rows.diff().numpy()
        missing = (offsets == MISSING).all(1)
        if (counts != self.lengths(side)[rows]).any() or (
            ~missing & _outside(offsets, np.repeat(lengths, counts))
        ).any():
            raise damaged(self.folder, f"its column `{side_column(side, 'offsets')}` is not that of its tokens")
        may_end = missing
        if self.vocabulary is not None:  # else any token of a template that a turn ends in is taken for its end
            may_end = np.isin(self.tokens(side, rows)[0], self.vocabulary.may_end[side])
        return LearntTokens.of(texts, offsets, token_rows.numpy(), turns.numpy(), turn_rows.numpy(), may_end)

    def units(self, granularity: Granularity, batch: Batch) -> SharedUnits:
        """The units of a batch's rows that both sides have a span of."""
        teacher, _ = self._unit_lists(granularity)["teacher"].take(batch.documents.numpy())
        student, unit_rows = self._unit_spans("student", granularity, batch, batch.rows)
        return shared_units(unit_rows, torch.from_numpy(teacher), student, batch.rows)

    def teacher_units(self, granularity: Granularity, batch: Batch, token_rows: Int64[Tensor, " pointers"]) -> Units:
        """All units of a batch's rows that the teacher has a span of; `token_rows`: its tokens of each."""
        spans, unit_rows = self._unit_spans("teacher", granularity, batch, token_rows)
        return units_with_span(spans, unit_rows, token_rows)

    def _unit_spans(
        self, side: Side, granularity: Granularity, batch: Batch, token_rows: Int64[Tensor, " pointers"]
    ) -> tuple[Int32[Tensor, "all_units 2"], Int64[Tensor, " _"]]:
        """Spans of all units of a batch's rows, and how many each row has: every one missing, or within its row's tokens."""
        spans, unit_rows = self._unit_lists(granularity)[side].take(batch.documents.numpy())
        start, end = spans.T
        tokens = np.repeat(token_rows.diff().numpy(), unit_rows.diff().numpy())
        missing = (start == MISSING) & (end == MISSING)
        if (~missing & ((start < 0) | (start >= end) | (end > tokens))).any():
            column = side_column(side, granularity)
            raise damaged(self.folder, f"its column `{column}` has spans outside of their rows")
        return torch.from_numpy(spans), unit_rows

    def _unit_lists(self, granularity: Granularity) -> dict[Side, Lists]:
        """Both sides' spans, as many of a row on the one as on the other."""
        if granularity not in self._units:
            lists = {side: self._lists(side_column(side, granularity)) for side in SIDES}
            if not np.array_equal(lists["teacher"].lengths, lists["student"].lengths):
                raise damaged(self.folder, f"its sides have rows of different numbers of {granularity}")
            self._units[granularity] = lists
        return self._units[granularity]

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables([open_shard(self.folder, shard, _COLUMNS) for shard in self.manifest.shards])

    @cached_property
    def _mined(self) -> Lists:
        shards = [open_shard(self.folder, shard, [MINED[0]]) for shard in self.manifest.shards]
        return Lists(pa.concat_tables(shards).column(MINED[0]))

    @cached_property
    def _texts(self) -> pa.Table:
        shards = [open_shard(self.folder, shard, _TEXT_COLUMNS, strings=False) for shard in self.manifest.shards]
        return pa.concat_tables(shards)

    def _response_lists(self, side: Side) -> Lists:
        """Of every row at least one span, not empty, within its tokens, each behind the one before it."""
        if side not in self._responses:
            name = side_column(side, "responses")
            lists, lengths = self._lists(name), self._lists(side_column(side, "input_ids")).lengths
            for spans, counts, tokens in lists.parts(lengths):
                starts, ends = spans.T
                earliest = np.append(0, ends[:-1])
                earliest[(np.cumsum(counts) - counts)[counts > 0]] = 0
                limits = np.repeat(tokens, counts)
                if (counts == 0).any() or ((starts < earliest) | (starts >= ends) | (ends > limits)).any():
                    raise damaged(self.folder, f"its column `{name}` has spans that its rows cannot have")
            self._responses[side] = lists
        return self._responses[side]

    @cached_property
    def _responses(self) -> dict[Side, Lists]:
        return {}

    @cached_property
    def _units(self) -> dict[Granularity, dict[Side, Lists]]:
        return {}

    @cached_property
    def _opened(self) -> dict[str, Lists]:
        return {}

    def _lists(self, name: str) -> Lists:
        if name not in self._opened:
            self._opened[name] = Lists(self._table.column(name))
        return self._opened[name]


def _outside(spans: Int32[np.ndarray, "spans 2"], limits: Int64[np.ndarray, " spans"]) -> Bool[np.ndarray, " spans"]:
    """Which are no [start, end) within 0 and their limit."""
    start, end = spans.T
    wrong: Bool[np.ndarray, " spans"] = (start < 0) | (start > end) | (end > limits)
    return wrong
