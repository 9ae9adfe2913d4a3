"""Texts, units and tokens to one shard of the dataset: alignment on both sides, Arrow columns, digests, counts."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from pipeline.align.edit_distance import MOST_CELLS, EditAlignment
from pipeline.align.spans import Ragged, Texts, Tokens, audit
from pipeline.dataset import columns as tables
from pipeline.dataset.rows import skeleton, stored_rows
from pipeline.dataset.shards import ID_BYTES, RowDigest, ShardOutput
from pipeline.read.records import Rejected
from pipeline.read.tokenizers import Encoding, OffsetTokenizer
from pipeline.shards import counts
from pipeline.text import Document, Rendered, Units
from schemas.columns import (
    GRANULARITIES,
    LABELLED,
    MINED,
    MISSING,
    SIDES,
    TREES,
    Granularity,
    Side,
    arrow_schema,
    label_column,
    side_column,
)
from schemas.rows import Reason
from trainer.maths.alignment import LearntTexts, LearntTokens, before_learnt, exact_pairs

Spans = Int32[np.ndarray, "_ 2"]


@dataclass(frozen=True)
class DocumentColumns:
    """The columns that no tokenizer has a say in, one entry a row."""

    rows: list[Rendered]
    sentences: list[Spans]
    units: dict[Granularity, list[Spans]]
    labels: dict[Granularity, list[tuple[str, ...]]]  # chunks and phrases
    trees: list[tuple[str, ...]] | None

    @classmethod
    def of(
        cls, rows: Sequence[Rendered], documents: Sequence[Document], units: Sequence[Units], keep_trees: bool
    ) -> "DocumentColumns":
        """From the stages' own objects."""
        return cls(
            rows=list(rows),
            sentences=[document.sentence_spans for document in documents],
            units={
                "words": [document.word_spans for document in documents],
                "chunks": [unit.chunks for unit in units],
                "phrases": [unit.phrases for unit in units],
            },
            labels={
                "chunks": [unit.chunk_labels for unit in units],
                "phrases": [unit.phrase_labels for unit in units],
            },
            trees=[unit.trees for unit in units if unit.trees is not None]
            if units and units[0].trees is not None
            else None,
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> "DocumentColumns":
        """From a shard that was written earlier. Raises ValueError for a conversation that is none."""
        return cls(
            rows=stored_rows(table),
            sentences=tables.spans_of(table.column("sentences")),
            units={name: tables.spans_of(table.column(name)) for name in GRANULARITIES},
            labels={
                name: [tuple(labels) for labels in table.column(label_column(name)).to_pylist()] for name in LABELLED
            },
            trees=[tuple(trees) for trees in table.column(TREES[0]).to_pylist()]
            if TREES[0] in table.column_names
            else None,
        )

    def take(self, rows: Sequence[int]) -> "DocumentColumns":
        """Only these rows."""
        return DocumentColumns(
            rows=[self.rows[row] for row in rows],
            sentences=[self.sentences[row] for row in rows],
            units={name: [spans[row] for row in rows] for name, spans in self.units.items()},
            labels={name: [labels[row] for row in rows] for name, labels in self.labels.items()},
            trees=None if self.trees is None else [self.trees[row] for row in rows],
        )


def notes_on(tokenizers: Mapping[Side, OffsetTokenizer]) -> tuple[str, ...]:
    """What a person should know of the tokenizers before a run."""
    return tuple(note for tokenizer in tokenizers.values() if (note := tokenizer.note()) is not None)


def encode_sides(
    tokenizers: Mapping[Side, OffsetTokenizer],
    rows: Sequence[Rendered],
    edits: EditAlignment | None = None,
    stay: Mapping[Side, Sequence[Encoding]] | None = None,
) -> tuple[list[int], dict[Side, list[Encoding]], dict[int, Reason]]:
    """Tokens of the rows that every tokenizer can take: (those rows, their encodings a side, reasons of the others).

    `stay`: encodings of sides that are not encoded anew. Of a row that several sides refuse the first side's reason is given;
    with `edits` those are left out as well whose tokens are too many for it.
    """
    results: dict[Side, Sequence[Encoding | Reason]] = {side: own.encode(rows) for side, own in tokenizers.items()}
    results |= stay or {}
    usable: list[int] = []
    encodings: dict[Side, list[Encoding]] = {side: [] for side in results}
    dropped: dict[int, Reason] = {}
    for row in range(len(rows)):
        of_row = {side: result[row] for side, result in results.items()}
        reason = next((item for item in of_row.values() if isinstance(item, Reason)), None)
        if reason is None and edits is not None:
            reason = _too_long(of_row)
        if reason is not None:
            dropped[row] = reason
            continue
        usable.append(row)
        for side, item in of_row.items():
            assert isinstance(item, Encoding)
            encodings[side].append(item)
    return usable, encodings, dropped


def _too_long(of_row: Mapping[Side, Encoding | Reason]) -> Reason | None:
    """Why the tokens of a row cannot be aligned by edit distance, if they cannot: time is the product of their numbers."""
    counts = [len(before_learnt(item.responses)) for item in of_row.values() if isinstance(item, Encoding)]
    if math.prod(counts) <= MOST_CELLS:
        return None
    told = " and ".join(f"{count:,}" for count in counts)
    return Reason("too many tokens to be aligned by edit distance", f"{told}; --max-length sets a limit")


def stored_encodings(table: pa.Table, side: Side) -> list[Encoding]:
    """One side's encodings out of a shard that was written earlier."""
    ids = tables.int_lists_of(table.column(side_column(side, "input_ids")))
    offsets = tables.spans_of(table.column(side_column(side, "offsets")))
    responses = tables.spans_of(table.column(side_column(side, "responses")))
    return [Encoding(*parts, truncated=False) for parts in zip(ids, offsets, responses, strict=True)]


def aligned(
    documents: DocumentColumns, encodings: Mapping[Side, Sequence[Encoding]]
) -> tuple[dict[Side, dict[Granularity, list[Spans]]], dict[str, Any]]:
    """Token spans of every unit on both sides, and the audit of what was lost."""
    texts = Texts.of([row.text for row in documents.rows])
    units = {name: Ragged.join(documents.units[name]) for name in GRANULARITIES}
    spans: dict[Side, dict[Granularity, list[Spans]]] = {}
    reasons: dict[Side, dict[Granularity, Any]] = {}
    for side in SIDES:
        tokens = Tokens.of(Ragged.join([encoding.offsets for encoding in encodings[side]]), texts)
        found = {name: tokens.spans_of(units[name]) for name in GRANULARITIES}
        spans[side] = {name: ragged.split() for name, (ragged, _) in found.items()}
        reasons[side] = {name: why for name, (_, why) in found.items()}
    return spans, audit(reasons)


def shard(
    documents: DocumentColumns,
    encodings: Mapping[Side, Sequence[Encoding]],
    tokenizers: Mapping[Side, OffsetTokenizer],
    *,
    stats: dict[str, Any],
    left_out: Sequence[Rejected],
    edits: EditAlignment | None = None,
) -> ShardOutput:
    """One shard: units aligned on both sides, as an Arrow table with its digests and counts.

    `left_out` are the rows that are in no shard, rejected or dropped; with `edits` tokens are aligned by it, too.
    `tokenizers` are those that have just encoded these rows: their offset counts go into the shard's.
    """
    spans, alignment = aligned(documents, encodings)
    rows = documents.rows
    columns: dict[str, pa.Array] = {
        "id": tables.string_column([row.id for row in rows], pa.string()),
        "text": tables.string_column([row.text for row in rows], pa.large_string()),
        "messages": tables.message_column([row.messages for row in rows]),
        "responses": tables.span_column([np.array(row.responses, dtype=np.int32).reshape(-1, 2) for row in rows]),
        "conversation": tables.string_column([skeleton(row) for row in rows], pa.large_string()),
        "sentences": tables.span_column(documents.sentences),
    }
    for name in GRANULARITIES:
        columns[name] = tables.span_column(documents.units[name])
        if name in documents.labels:
            columns[label_column(name)] = tables.string_list_column(documents.labels[name])
    for side in SIDES:
        columns[side_column(side, "input_ids")] = tables.int_list_column([row.input_ids for row in encodings[side]])
        columns[side_column(side, "offsets")] = tables.span_column([row.offsets for row in encodings[side]])
        columns[side_column(side, "responses")] = tables.span_column([row.responses for row in encodings[side]])
        for name in GRANULARITIES:
            columns[side_column(side, name)] = tables.span_column(spans[side][name])
    if documents.trees is not None:
        columns[TREES[0]] = tables.string_list_column(documents.trees)
    partners = None if edits is None else _partners(edits, encodings)
    if partners is not None:
        columns[MINED[0]] = tables.int_list_column(partners)
    schema = arrow_schema(documents.trees is not None, partners is not None)
    offsets: dict[str, dict[str, int]] = {}
    for side, tokenizer in tokenizers.items():
        offsets[side] = dict(tokenizer.offset_counts)
        tokenizer.offset_counts.clear()
    return ShardOutput(
        table=pa.table({name: columns[name] for name in schema.names}, schema=schema),
        digests=tuple(_digest(documents, encodings, spans, partners, row) for row in range(len(rows))),
        stats=stats
        | {"alignment": alignment, "offsets": offsets, "learnt": _learnt(documents, encodings)}
        | ({} if partners is None else {"mined": _partnered(partners)}),
        left_out=tuple(row.entry() for row in left_out),
    )


def _learnt(documents: DocumentColumns, encodings: Mapping[Side, Sequence[Encoding]]) -> dict[str, int]:
    """Learnt tokens of each side, and those that are exactly some of the other side (`trainer.maths.alignment`)."""
    rows = documents.rows
    responses = Ragged.join([np.array(row.responses, dtype=np.int32).reshape(-1, 2) for row in rows])
    texts = LearntTexts.of([row.text for row in rows], responses.spans, responses.rows)
    tokens: dict[Side, LearntTokens] = {}
    counts: dict[str, int] = {}
    for side in SIDES:
        offsets = Ragged.join([encoding.offsets for encoding in encodings[side]])
        turns = Ragged.join([encoding.responses for encoding in encodings[side]])
        may_end = offsets.spans[:, 0] == MISSING
        tokens[side] = LearntTokens.of(texts, offsets.spans, offsets.rows, turns.spans, turns.rows, may_end)
        counts[side] = int(np.diff(turns.spans).sum())
    return counts | {"exact": len(exact_pairs(texts, tokens["student"], tokens["teacher"]))}


def _partners(
    edits: EditAlignment, encodings: Mapping[Side, Sequence[Encoding]]
) -> list[Int32[np.ndarray, " positions"]]:
    """Of each row the teacher's token for each of the student's before a learnt one, counted from the row's first; or -1."""
    rows = []
    for student, teacher in zip(encodings["student"], encodings["teacher"], strict=True):
        ours, theirs = before_learnt(student.responses), before_learnt(teacher.responses)
        partners = edits.partners(student.input_ids[ours], teacher.input_ids[theirs])
        rows.append(np.append(theirs, MISSING)[partners].astype(np.int32))
    return rows


def _partnered(partners: Sequence[Int32[np.ndarray, " positions"]]) -> dict[str, int]:
    """How many of the student's tokens before a learnt one there are, and how many have a partner."""
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *partners])
    return {"tokens": len(flat), "partners": int((flat != MISSING).sum())}


def merged(parts: Sequence[ShardOutput]) -> ShardOutput:
    """Several outputs, in order, as one shard."""
    return ShardOutput(
        table=pa.concat_tables([part.table for part in parts]).combine_chunks(),
        digests=tuple(digest for part in parts for digest in part.digests),
        stats=counts.added(part.stats for part in parts),
        left_out=tuple(entry for part in parts for entry in part.left_out),
    )


def _digest(
    documents: DocumentColumns,
    encodings: Mapping[Side, Sequence[Encoding]],
    spans: Mapping[Side, Mapping[Granularity, Sequence[Spans]]],
    partners: Sequence[Int32[np.ndarray, " positions"]] | None,
    row: int,
) -> RowDigest:
    """Hashes of one row. Every part is preceded by its length, so that no two rows spell the same bytes."""

    def of_side(side: Side) -> list[bytes]:
        encoding = encodings[side][row]
        arrays = [encoding.input_ids, encoding.offsets, encoding.responses]
        arrays += [spans[side][name][row] for name in GRANULARITIES]
        return [array.astype("<i4").tobytes() for array in arrays]

    own = documents.rows[row]
    parts = [own.id.encode(), own.text.encode(), json.dumps([own.messages, own.responses]).encode()]
    parts.append(skeleton(own).encode())
    parts += [documents.units[name][row].astype("<i4").tobytes() for name in GRANULARITIES]
    parts += ["\0".join(labels[row]).encode() for labels in documents.labels.values()]
    teacher = hashlib.blake2b(digest_size=16)
    _update(teacher, [*parts, *of_side("teacher")])
    whole = teacher.copy()
    trees = [] if documents.trees is None else ["\0".join(documents.trees[row]).encode()]
    mined = [] if partners is None else [partners[row].astype("<i4").tobytes()]
    _update(whole, [documents.sentences[row].astype("<i4").tobytes(), *of_side("student"), *mined, *trees])
    id_digest = hashlib.blake2b(own.id.encode(), digest_size=ID_BYTES)
    return RowDigest(whole.hexdigest(), teacher.hexdigest(), id_digest.hexdigest())


def _update(digest: hashlib.blake2b, parts: Iterable[bytes]) -> None:
    for part in parts:
        digest.update(struct.pack("<q", len(part)))
        digest.update(part)
