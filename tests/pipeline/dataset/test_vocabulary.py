"""The tokens of both sides beside a dataset: written, read by the trainer, verified, told, and missed in older datasets."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from pipeline.align.vocabulary import SideVocabulary
from pipeline.dataset.prepare import load_tokenizers, prepare
from pipeline.dataset.realign import realign
from pipeline.dataset.verify import verify
from schemas import files
from schemas.errors import Exit, StateError, UserError
from schemas.manifest import MANIFEST, read_manifest
from schemas.vocabulary import SHARED, VOCABULARY
from trainer.batches.documents import Documents

NOBODY = {"teacher": None, "student": None}


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def rewrite(folder, change):
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values))


@pytest.fixture
def older(copy):
    """As it was before the file was."""

    def change(values):
        del values["vocabulary"], values["counts"]["learnt"], values["counts"]["shared_tokens"]

    rewrite(copy, change)
    (copy / VOCABULARY).unlink()
    return copy


def test_the_trainer_reads_what_the_tokenizers_spell(prepared, settings_for):
    vocabulary = Documents(prepared).vocabulary
    tokenizers = load_tokenizers(settings_for(), ("teacher", "student"))
    for side, tokenizer in tokenizers.items():
        own = SideVocabulary.of(tokenizer)
        assert vocabulary.lengths[side].tolist() == [len(text) for text in own.spelled]
        assert set(vocabulary.may_end[side].tolist()) == {*own.special, *own.end}
    assert len(vocabulary.shared) == read_manifest(prepared).counts["shared_tokens"]


def test_learnt_tokens_are_counted(prepared):
    documents = Documents(prepared)
    rows = np.arange(len(documents))
    learnt = read_manifest(prepared).counts["learnt"]
    for side in ("teacher", "student"):
        spans, _ = documents.responses(side, rows)
        assert learnt[side] == int((spans[:, 1] - spans[:, 0]).sum())
    # texts without a prompt begin with a token that is nobody's next
    assert 0 <= learnt["exact"] - len(documents.exact_pairs(rows)) <= len(rows)


def test_the_same_bytes_with_workers_and_by_align(forked_workers, prepared, settings_for, tmp_path):
    prepare(settings_for(), tmp_path / "again", workers=2, quiet=True)
    sides = {"student": {"tokenizer": "embedded:bytelevel-bpe"}}
    realign(prepared, tmp_path / "aligned", sides, None, workers=1, overwrite=False, quiet=True)
    for other in ("again", "aligned"):
        for file in (VOCABULARY, MANIFEST):
            assert (tmp_path / other / file).read_bytes() == (prepared / file).read_bytes()


def test_align_needs_no_tokenizer_of_the_side_that_stays(prepared, tmp_path, monkeypatch):
    from pipeline.dataset import realign as module

    asked = []

    def load(config, sides):
        asked.append(tuple(sides))
        return load_tokenizers(config, sides)

    monkeypatch.setattr(module, "load_tokenizers", load)
    sides = {"student": {"tokenizer": "embedded:sentencepiece-bpe"}}
    realign(prepared, tmp_path / "out", sides, None, workers=1, overwrite=False, quiet=True)
    assert asked == [("student",)]
    pairs = Documents(tmp_path / "out").vocabulary.shared
    assert (pairs[:, 0] == pairs[:, 1]).all()


def test_verify_notices_another_map(copy):
    tensors = load_file(copy / VOCABULARY)
    tensors[SHARED] = tensors[SHARED][1:]
    content = save(tensors)
    (copy / VOCABULARY).write_bytes(content)
    assert any(
        "another checksum" in problem or "bytes" in problem
        for problem in verify(copy, quick=True, moved=NOBODY).problems
    )
    entry = {"file": VOCABULARY, "bytes": len(content), "sha256": files.sha256_of(copy / VOCABULARY)}
    rewrite(copy, lambda values: values.update(vocabulary=entry))
    assert verify(copy, quick=True, moved=NOBODY).problems == [
        f"{VOCABULARY} has other shared tokens than follow from what the tokens spell."
    ]


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_file_is_told_at_the_start(copy, change):
    change(copy / VOCABULARY)
    with pytest.raises(StateError, match=r"vocabulary\.safetensors (is missing|has \d+ bytes)"):
        Documents(copy)


def test_an_older_dataset_opens_and_names_the_command(older, tmp_path, command):
    documents = Documents(older)
    assert documents.vocabulary is None
    assert len(documents.exact_pairs(np.array([0, 1])))
    with pytest.raises(UserError, match=r"The term `x` needs to know .*mta-prep align .* -o NEW"):
        documents.require_vocabulary("The term `x`")
    code, told, _ = command("info", older)
    assert code == 0
    assert "mta-prep align" in told
    sides = {"student": {"tokenizer": "embedded:bytelevel-bpe"}}
    realign(older, tmp_path / "new", sides, None, workers=1, overwrite=False, quiet=True)
    assert Documents(tmp_path / "new").require_vocabulary("It") is not None


def test_a_file_that_tells_no_byte_tokens_is_told_and_made_anew(copy, prepared, tmp_path):
    tensors = load_file(copy / VOCABULARY)
    content = save({name: values for name, values in tensors.items() if not name.endswith(".fallback")})
    (copy / VOCABULARY).write_bytes(content)
    entry = {"file": VOCABULARY, "bytes": len(content), "sha256": files.sha256_of(copy / VOCABULARY)}
    rewrite(copy, lambda values: values.update(vocabulary=entry))
    (problem,) = verify(copy, quick=True, moved=NOBODY).problems
    assert "is of an earlier version" in problem
    sides = {"student": {"tokenizer": "embedded:bytelevel-bpe"}}
    realign(copy, tmp_path / "new", sides, None, workers=1, overwrite=False, quiet=True)
    assert (tmp_path / "new" / VOCABULARY).read_bytes() == (prepared / VOCABULARY).read_bytes()


def test_info_tells_what_the_sides_share(prepared, command):
    code, told, _ = command("info", prepared)
    counts = read_manifest(prepared).counts
    assert code == 0
    assert f"share {counts['shared_tokens']}" in told.replace(",", "").replace("\n", " ")
    assert f"{VOCABULARY} says which, and is as it was written" in told.replace("\n", " ")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_info_notices_another_map_and_tells_the_rest(copy, command, flags):
    content = bytearray((copy / VOCABULARY).read_bytes())
    content[-1] ^= 1
    (copy / VOCABULARY).write_bytes(content)
    code, told, error = command("info", copy, *flags)
    assert code == Exit.STATE
    assert f"{VOCABULARY} has another checksum" in error.replace("\n", " ")
    assert read_manifest(copy).fingerprint in told
    assert ("cannot be read" in told) == (not flags)


def test_info_tells_what_was_counted_in_words(prepared, command):
    _, told, _ = command("info", prepared)
    (line,) = [line for line in told.splitlines() if line.startswith("Sentences and units")]
    counts = read_manifest(prepared).counts["sentences"]
    assert f"{counts['sentences_parsed']} sentences parsed" in line
    assert "_" not in line
