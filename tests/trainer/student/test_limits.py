"""A student's limits, compared with a dataset's rows before anything begins."""

import shlex

import pytest

from schemas.errors import UsageError
from schemas.training import StudentConfig
from trainer.batches.documents import Documents
from trainer.student.limits import require_lengths, require_vocabulary
from trainer.student.model import load_student


def student(positions, vocabulary=4096):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    config = {"model_type": "gpt2", "vocab_size": vocabulary, "n_positions": positions, **sizes}
    return load_student(StudentConfig(init="config", config=config), seed=0)


def test_a_token_that_the_student_does_not_know_is_refused(prepared):
    documents = Documents(prepared)
    require_vocabulary(student(16, documents.largest_student_id + 1), documents)
    with pytest.raises(UsageError, match=f"has the student token {documents.largest_student_id}"):
        require_vocabulary(student(16, documents.largest_student_id), documents)


@pytest.mark.parametrize("same_tokens", [False, True])
def test_rows_over_the_limit_are_counted_and_the_command_that_is_named_cuts_them(
    same, same_tokens, command, tmp_path, monkeypatch
):
    documents = Documents(same)
    lengths = documents.lengths("student")
    limit = int(sorted(lengths)[-3])
    over = [row for row, length in enumerate(lengths) if length > limit]
    with pytest.raises(UsageError) as refused:
        require_lengths(student(limit), documents, documents.rows, same_tokens)
    said = str(refused.value)
    assert f"{len(over)} row" in said
    assert f"row {over[0]} ({str(documents.ids[over[0]])!r}) has {lengths[over[0]]}" in said
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(said.split("`")[1])
    assert program == "mta-prep"
    assert command(*arguments)[0] == 0
    limited = Documents(tmp_path / "NEW")
    require_lengths(student(limit), limited, limited.rows, same_tokens)
    assert limited.same_tokens == same_tokens
    assert limited.rows == documents.rows


def test_only_rows_that_are_used_count(same):
    documents = Documents(same)
    lengths = documents.lengths("student")
    longest = int(lengths.argmax())
    limit = int(lengths[:longest].max())
    require_lengths(student(limit), documents, longest, same_tokens=False)
    with pytest.raises(UsageError, match=f"1 row of {same} is longer"):
        require_lengths(student(limit), documents, longest + 1, same_tokens=False)
