"""Names on the Hub in place of folders: fetched once, by one of many, and there when the Hub is not."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_stand_in import train_from
from launching import launch, metrics, train_command
from schemas import embedded
from schemas.errors import Exit, UsageError, UserError
from schemas.hub import hub_name, read_listing
from trainer.hub.folders import folder_here, is_copy, local_folder

# one process has the runs and caches of the trainer's tests
pytestmark = pytest.mark.xdist_group("trainer")

LICENCES = ("--license", "mit", "--text-license", "mit")
DATASET, CACHE = "hf://datasets/owner/sample", "hf://datasets/owner/cache"


@pytest.fixture
def push(command):
    def run(folder, name, *licences):
        code, out, err = command("push", folder, name, *(licences or LICENCES))
        assert code == 0, err
        return out

    return run


def without_card(files):
    return {name: content for name, content in files.items() if name != "README.md"}


def fetched(hub, ending):
    return [request for request in hub.requests if request.startswith("GET") and request.endswith(ending)]


def test_a_run_from_the_hub_is_the_run_from_the_folders(hub, push, command, config, folders, contents, tmp_path):
    objectives = {"ce": {}, "dsa": {}}
    push(folders["same"], "owner/sample")
    push(folders["caches"][0], "owner/cache")
    hub.requests.clear()
    there = config(tmp_path / "there", data={"dataset": DATASET, "caches": [CACHE]}, objectives=objectives, steps=2)
    launch(2, train_from, hub.url, tmp_path, "--config", there)
    shards = fetched(hub, ".parquet")
    assert len(shards) == len(set(shards)) > 1  # one rank has fetched, the other has waited
    caches = [str(folders["caches"][0])]
    launch(
        2, train_command, "--config", config(tmp_path / "here", data={"caches": caches}, objectives=objectives, steps=2)
    )
    losses = [[line["loss"] for line in metrics(tmp_path / run) if "loss" in line] for run in ("here", "there")]
    assert losses[0] == losses[1] != []

    student = tmp_path / "there" / "student"
    told = push(student, "owner/student", "--license", "mit")
    assert "hf://models/owner/student" in told
    code, out, err = command("pull", "owner/student", "-o", tmp_path / "pulled")
    assert code == 0, err
    assert "a student" in out
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(student))
    code, _, err = command("push", tmp_path / "there", "owner/student", *LICENCES)
    assert code == Exit.USAGE
    assert "push that" in err
    (student / "pytorch_model.bin").write_bytes(b"pickle")
    code, _, err = command("push", student, "owner/student", *LICENCES)
    assert code == Exit.USAGE
    assert "pytorch_model.bin, which is not pushed" in err


def test_a_cache_comes_back_byte_for_byte(hub, push, command, folders, contents, tmp_path):
    cache = folders["caches"][1]
    push(cache, "owner/cache")
    code, out, err = command("pull", "owner/cache", "-o", tmp_path / "pulled")
    assert code == 0, err
    assert "a teacher cache" in out
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(cache))
    assert "viewer: false" in hub.dataset("owner/cache").files()["README.md"].decode()
    damaged = tmp_path / "damaged"
    shutil.copytree(cache, damaged)
    shard = damaged / "shards" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    code, _, err = command("push", damaged, "owner/cache", *LICENCES)
    assert code == Exit.STATE
    assert "shards/00000.safetensors has another checksum" in err
    code, _, err = command("push", folders["same"], "owner/cache", *LICENCES)
    assert code == Exit.USAGE
    assert "holds a teacher cache" in err


def test_a_parser_comes_back_byte_for_byte(hub, push, command, contents, tmp_path):
    parser = embedded.DATA / "parser"
    push(parser, "owner/parser", "--license", "cc-by-sa-4.0")
    assert command("pull", "owner/parser", "-o", tmp_path / "pulled")[0] == 0
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(parser))


def test_a_copy_is_fetched_once(hub, push, prepared, contents, monkeypatch):
    push(prepared, "owner/sample")
    hub.requests.clear()
    with ThreadPoolExecutor(3) as threads:
        copies = set(threads.map(local_folder.__wrapped__, [DATASET] * 3))
    (copy,) = copies
    assert is_copy(copy)
    assert not is_copy(prepared)
    assert without_card(contents(copy)) == without_card(contents(prepared))
    assert len(fetched(hub, ".parquet")) == 5
    assert folder_here(DATASET) == copy
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder(DATASET) == copy
    assert folder_here("hf://datasets/owner/other") is None
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        local_folder("hf://datasets/owner/other")


def test_a_newer_commit_is_another_copy(hub, push, prepared, same):
    push(prepared, "owner/sample")
    before = local_folder(DATASET)
    push(same, "owner/sample")
    assert local_folder(DATASET) == before  # in one process it stays what it was
    local_folder.cache_clear()
    assert local_folder(DATASET) not in (before, None)
    assert local_folder(f"{DATASET}@{before.name}") == before


def test_commands_take_names_on_the_hub(hub, push, command, prepared, tiny_teacher, tmp_path):
    push(prepared, "owner/sample")
    code, out, err = command("info", DATASET)
    assert code == 0, err
    assert "24 rows" in out or "rows" in out
    assert command("verify", DATASET, "--quick")[0] == 0
    assert command("report", DATASET, "--rows", "1", "-o", tmp_path / "page.html")[0] == 0
    code, _, err = command("align", DATASET, "--student", "embedded:sentencepiece-bpe")
    assert code == Exit.USAGE
    assert "pass --out FOLDER" in err
    flags = ["--teacher", tiny_teacher, "--recipe", "mta-dsa", "-o", tmp_path / "cache"]
    code, _, err = command("cache-teacher", DATASET, *flags, "--limit", "3")
    assert code == 0, err
    assert f"dataset: {DATASET}" in (tmp_path / "cache" / "config.yaml").read_text()
    assert command("inspect", tmp_path / "cache")[0] == 0
    code, _, err = command("info", "hf://models/owner/sample")
    assert code == Exit.USAGE
    assert "is a model" in err


def test_names():
    assert local_folder("some/folder") == Path("some/folder")
    for given, shown in {
        "owner/name": "hf://owner/name",
        "owner/name@v1": "hf://owner/name@v1",
        "hf://datasets/owner/name@refs/pr/1": "hf://datasets/owner/name@refs/pr/1",
        "hf://models/owner/name": "hf://models/owner/name",
    }.items():
        assert str(hub_name(given)) == shown
    for wrong in (
        "name",
        "hf://datasets/name",
        "../owner/name",
        "owner/name/file",
        "owner/name@",
        "hf://spaces/a/b/c",
        "",
    ):
        with pytest.raises(UsageError):
            hub_name(wrong)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null", b'{"files": 3}', b'{"format_version": 9}', b"\xff"])
def test_a_list_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r"mta-prep\.json|another version"):
        read_listing(text, "hf://datasets/owner/name")
