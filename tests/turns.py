"""Datasets whose rows have several turns that are learnt: made of one whose rows have one response, or of conversations."""

import json
import shutil

import numpy as np
import pyarrow as pa

from schemas import files
from schemas.columns import SIDES, side_column
from schemas.manifest import MANIFEST, read_manifest

TOLD = [
    [
        ("system", "You are brief."),
        ("user", "Who sold the mill?"),
        ("assistant", "Ada sold the old mill."),
        ("user", "When was it?"),
        ("assistant", "In the spring of 1901, before the flood."),
    ],
    [("user", "Name two dogs."), ("assistant", "Rex and Bella.")],
    [
        ("user", "Say hello."),
        ("assistant", "Hello!"),
        ("user", "Again, and tell me of a cat on the moon."),
        ("assistant", "Once a cat sat on the moon. It looked down at the small blue earth and slept."),
    ],
]


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


def conversations(out, **values):
    """A dataset of a few conversations, the same tokenizer and template on both sides unless `values` say otherwise."""
    from pipeline.dataset.prepare import prepare
    from schemas.config import ParseConfig

    rows = out.with_suffix(".jsonl")
    lines = [json.dumps({"messages": [{"role": role, "content": said} for role, said in told]}) for told in TOLD]
    rows.write_text("\n".join(lines), encoding="utf-8")
    side = {"tokenizer": "embedded:sentencepiece-bpe"}
    base = {"inputs": [str(rows)], "template": "chatml", "teacher": side, "student": side}
    prepare(ParseConfig.parse(base | values, "test"), out, workers=1, quiet=True)
    return out
