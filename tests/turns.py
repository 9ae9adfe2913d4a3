"""A dataset whose rows have several turns that are learnt, made of one whose rows have one response."""

import json
import shutil

import numpy as np
import pyarrow as pa

from schemas import files
from schemas.columns import SIDES, side_column
from schemas.manifest import MANIFEST, read_manifest


def spans_of(length, row):
    """Spans of a row of some tokens: from its first token on, one right behind another, to its very end, of one token."""
    random = np.random.default_rng(row)
    edges = sorted(random.choice(length + 1, size=min(6, length + 1), replace=False).tolist())
    if row % 3 == 0:
        edges[0] = 0
    if row % 3 == 1:
        edges[-1] = length
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    return [*spans[:-1], (spans[-2][1], spans[-1][1])] if row % 2 and len(spans) > 1 else spans


def with_turns(folder, out):
    """A copy of a dataset with the same tokens on both sides, in which other tokens are learnt."""
    shutil.copytree(folder, out)
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    row = 0
    for entry, shard in zip(manifest["shards"], read_manifest(folder).shards, strict=True):
        table = pa.ipc.open_stream((folder / shard.file).read_bytes()).read_all()
        lengths = table.column("student_input_ids").combine_chunks().value_lengths().to_pylist()
        spans = [spans_of(length, row + number) for number, length in enumerate(lengths)]
        row += len(lengths)
        for side in SIDES:
            index = table.schema.get_field_index(side_column(side, "responses"))
            field = table.schema.field(index)
            table = table.set_column(index, field, pa.array(spans, field.type))
        with (out / shard.file).open("wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        entry |= {"bytes": (out / shard.file).stat().st_size, "sha256": files.sha256_of(out / shard.file)}
    manifest |= {"teacher_fingerprint": "7" * 64, "fingerprint": "8" * 64}
    (out / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return out
