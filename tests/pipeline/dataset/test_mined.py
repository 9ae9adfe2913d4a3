"""MinED in a dataset: the same bytes by any road, verified, told, read as batches have it, missed with a command."""

import json
import shlex
import shutil

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_from_disk
from safetensors.numpy import load_file, save

from pipeline.align.edit_distance import EditAlignment
from pipeline.align.vocabulary import read_side
from pipeline.dataset import verify as checks
from pipeline.dataset.prepare import prepare
from pipeline.dataset.realign import realign
from schemas import files
from schemas.columns import MINED, MISSING, SIDES
from schemas.errors import StateError, UserError
from schemas.manifest import MANIFEST, read_manifest
from schemas.vocabulary import NEAREST, VOCABULARY
from trainer.batches.documents import Documents

NOBODY = {"teacher": None, "student": None}


@pytest.fixture
def copy(mined, tmp_path):
    return shutil.copytree(mined, tmp_path / "copy")


def before_learnt(row, side):
    return [token - 1 for first, last in row[f"{side}_responses"] for token in range(max(first, 1), last)]


def test_the_same_bytes_by_any_road(mined, prepared, settings_for, tmp_path, contents):
    """Parsed, in other shards; aligned to another student and back; and the teacher's side stays as it was."""
    prepare(settings_for(mined="exact", limit=3, shard_rows=2), tmp_path / "parsed", workers=1, quiet=True)
    parsed, whole = (load_from_disk(str(folder)) for folder in (tmp_path / "parsed", mined))
    assert parsed[:][MINED[0]] == whole[: len(parsed)][MINED[0]]
    for folder, tokenizer in (("there", "sentencepiece-bpe"), ("back", "bytelevel-bpe")):
        source = mined if folder == "there" else tmp_path / "there"
        sides = {"student": {"tokenizer": f"embedded:{tokenizer}"}}
        realign(source, tmp_path / folder, sides, None, workers=1, overwrite=False, quiet=True)
    assert contents(tmp_path / "back") == contents(mined)
    assert checks.verify(tmp_path / "there", quick=False, moved=NOBODY).problems == []
    before, after = read_manifest(prepared), read_manifest(mined)
    assert after.teacher_fingerprint == before.teacher_fingerprint
    assert after.fingerprint != before.fingerprint


def test_every_row_has_its_partners(mined):
    """One for each of the student's tokens before a learnt one, of the teacher's, rising; as many as the manifest says."""
    edits = EditAlignment.of({side: read_side(mined, side) for side in SIDES})
    counts = {"tokens": 0, "partners": 0}
    for row in load_from_disk(str(mined)):
        ours, theirs = (before_learnt(row, side) for side in ("student", "teacher"))
        ids = [
            np.array([row[f"{side}_input_ids"][token] for token in tokens], dtype=np.int32)
            for side, tokens in (("student", ours), ("teacher", theirs))
        ]
        partners = edits.partners(*ids).tolist()
        assert row[MINED[0]] == [MISSING if place == MISSING else theirs[place] for place in partners]
        aligned = [token for token in row[MINED[0]] if token != MISSING]
        assert aligned == sorted(aligned)
        counts["tokens"] += len(ours)
        counts["partners"] += len(aligned)
    assert read_manifest(mined).counts["mined"] == counts
    assert counts["partners"] > counts["tokens"] / 2


@pytest.mark.parametrize("same_prefix", [False, True])
def test_batches_have_those_of_the_same_tokens(mined, same_prefix):
    documents, table = Documents(mined), load_from_disk(str(mined))
    rows = np.array([5, 0, 2, 1])
    spelled = {side: read_side(mined, side) for side in SIDES}
    batch, teacher = documents.batch(rows), documents.teacher_tokens(rows)
    wanted = []
    for number, row in enumerate(rows.tolist()):
        of_row = table[row]
        places = {side: before_learnt(of_row, side) for side in SIDES}
        begin = int(batch.position_rows[number]), int(teacher.position_rows[number])
        for position, partner in enumerate(of_row[MINED[0]]):
            if partner == MISSING:
                continue
            tokens = {"student": places["student"][position], "teacher": partner}
            ids = {side: of_row[f"{side}_input_ids"][token] for side, token in tokens.items()}
            if not alike(spelled, ids) or (same_prefix and not same_text_read(of_row, tokens, spelled)):
                continue
            wanted.append([begin[0] + position, begin[1] + places["teacher"].index(partner)])
    found = documents.mined_pairs(rows, "exact", same_prefix)
    assert found.tolist() == wanted
    assert 0 < len(found) < len(batch.positions)


def alike(spelled, ids):
    ends = {side: ids[side] in own.end for side, own in spelled.items()}
    if all(ends.values()):
        return True
    text = {side: own.spelled[ids[side]] for side, own in spelled.items()}
    return text["student"] == text["teacher"] != b"" and not any(ids[side] in spelled[side].special for side in SIDES)


def same_text_read(row, tokens, spelled):
    """Whether both sides' learnt tokens up to these spell the same, the space before the text aside."""
    read = {}
    for side, token in tokens.items():
        first = row[f"{side}_responses"][0][0]
        ids = row[f"{side}_input_ids"][first : token + 1]
        read[side] = b"".join(spelled[side].spelled[index] for index in ids)
    return read["student"].removeprefix(b" ") == read["teacher"].removeprefix(b" ")


def test_of_the_same_tokens_every_position_is_its_own_partner(same, tmp_path):
    realign(same, tmp_path / "out", {}, None, mined="exact", workers=1, overwrite=False, quiet=True)
    documents, rows = Documents(tmp_path / "out"), np.arange(9)
    for same_prefix in (False, True):
        pairs = documents.mined_pairs(rows, "exact", same_prefix)
        assert (pairs[:, 0] == pairs[:, 1]).all()
        assert len(pairs) == len(documents.batch(rows).positions) or same_prefix
    assert len(pairs) > 0.9 * len(documents.batch(rows).positions)


def rewritten(folder, change):
    """The dataset with its first shard's alignment changed, and a checksum that fits."""
    path = folder / read_manifest(folder).shards[0].file
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        table = reader.read_all()
    index = table.schema.get_field_index(MINED[0])
    values = table.column(index).to_pylist()
    change(values)
    table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    with path.open("wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"][0] |= {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_verify_notices_another_alignment(copy):
    def change(values):
        values[1][0] = MISSING if values[1][0] != MISSING else 0

    rewritten(copy, change)
    (problem,) = checks.verify(copy, quick=False, moved=NOBODY).problems
    assert problem.endswith("mined does not follow from the tokens before learnt ones and what they spell.")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row.pop(), "is not that of its tokens"),
        (lambda row: row.__setitem__(-1, 10**6), "has tokens that are before no learnt one"),
        (lambda row: row.__setitem__(-1, -2), "has tokens that are before no learnt one"),
    ],
)
def test_alignments_that_a_row_cannot_have(copy, change, told):
    rewritten(copy, lambda values: change(values[1]))
    documents = Documents(copy)
    documents.mined_pairs(np.array([0]), "exact", same_prefix=False)
    with pytest.raises(StateError, match=f"its column `mined` {told}"):
        documents.mined_pairs(np.array([0, 1]), "exact", same_prefix=False)


def test_a_dataset_without_it_names_the_command_that_adds_it(prepared, mined, tmp_path, command, contents):
    with pytest.raises(UserError, match=r"The term `x` needs tokens aligned by edit distance") as error:
        Documents(prepared).require_mined("The term `x`", "exact")
    words = shlex.split(str(error.value).split("`")[3].replace("NEW", shlex.quote(str(tmp_path / "new"))))
    assert command(*words[1:], "--workers", "1")[0] == 0
    assert contents(tmp_path / "new") == contents(mined)
    Documents(mined).require_mined("The term `x`", "exact")
    with pytest.raises(UserError, match=r"needs which tokens are nearest to which, .* --mined nearest -o NEW"):
        Documents(mined).require_mined("The term `x`", "nearest")


def test_info_tells_how_much_is_aligned(mined, prepared, command):
    code, told, _ = command("info", mined)
    counts = read_manifest(mined).counts["mined"]
    assert code == 0
    assert f"MinED (exact): of {counts['tokens']} tokens" in told.replace("\n", " ")
    assert "MinED" not in command("info", prepared)[1]


def test_align_needs_something_to_change(prepared, command):
    code, _, error = command("align", prepared)
    assert code == 2
    assert "--mined" in error


def test_nearest_tokens_are_stored_with_a_checksum_and_serve_batches(mined, tmp_path, command):
    """More positions are aligned than by equal bytes, those among them."""
    out = tmp_path / "nearest"
    code, _, told = command("align", mined, "--mined", "nearest", "-o", out, "--workers", "1")
    assert code == 0
    assert "tokens/s" in told
    documents, rows = Documents(out), np.arange(9)
    documents.require_mined("It", "nearest")
    exact, nearest = (
        {tuple(pair) for pair in documents.mined_pairs(rows, vocabulary, same_prefix=False).tolist()}
        for vocabulary in ("exact", "nearest")
    )
    assert exact < nearest
    assert checks.verify(out, quick=True, moved=NOBODY).problems == []
    tensors = load_file(out / VOCABULARY)
    changed = tensors[NEAREST].copy()
    changed[tensors["shared"][0, 1]] += 1
    content = save(tensors | {NEAREST: changed})
    (out / VOCABULARY).write_bytes(content)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["vocabulary"] |= {"bytes": len(content), "sha256": files.sha256_of(out / VOCABULARY)}
    (out / MANIFEST).write_text(json.dumps(manifest))
    (problem,) = checks.verify(out, quick=True, moved=NOBODY).problems
    assert "other tokens nearest to some than those of the same bytes" in problem
