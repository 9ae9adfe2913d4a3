"""A dataset to the Hub and back: the folder byte for byte, whatever breaks on the way; and nothing else is taken."""

import copy
import json
import shutil
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import constants

from pipeline.dataset.verify import verify
from schemas import cards
from schemas.errors import Exit
from schemas.hub import LISTING
from schemas.manifest import MANIFEST, read_manifest
from trainer.hub import restoring

LICENCES = ("--license", "cc-by-4.0", "--text-license", "cc-by-sa-4.0")
NAME = "owner/sample"
_PUSHED = {}


@pytest.fixture
def push(command, prepared):
    """Pushes a folder, the prepared sample by default: (exit code, standard output, standard error)."""

    def run(*arguments, folder=prepared, name=NAME, licences=LICENCES):
        return command("push", folder, name, *licences, *arguments)

    return run


@pytest.fixture
def pushed(hub, push):
    """The stand-in with the prepared sample on it."""
    if not _PUSHED:
        assert push()[0] == 0
        _PUSHED.update(repositories=hub.repositories, objects=hub.objects)
    hub.repositories, hub.objects = copy.deepcopy(_PUSHED["repositories"]), dict(_PUSHED["objects"])
    hub.requests.clear()
    return hub


@pytest.fixture
def pull(command, tmp_path):
    """Pulls into a new folder."""

    def run(name=NAME, out=tmp_path / "pulled"):
        return command("pull", name, "-o", out)

    return run


def without_card(files):
    return {name: content for name, content in files.items() if name != "README.md"}


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def refused(result, code, *parts):
    """One sentence or two, without a traceback, with an exit code."""
    got, _, err = result
    assert got == code, err
    assert err.splitlines()[-1].startswith("Error: ")  # behind the progress
    assert "Traceback" not in err
    for part in parts:
        assert part in " ".join(err.split())


def test_a_dataset_comes_back_byte_for_byte(pushed, pull, prepared, contents, tmp_path):
    code, out, err = pull()
    assert code == 0, err
    assert f"hf://datasets/{NAME} (a prepared dataset" in out
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(prepared))
    assert not hidden(tmp_path)
    front, _ = cards.parted((tmp_path / "pulled" / "README.md").read_text())
    assert front["configs"] == [{"config_name": "default", "data_files": "data-*.arrow"}]
    assert (front["license"], front["text_license"]) == ("cc-by-4.0", "cc-by-sa-4.0")


def test_what_lies_on_the_hub(pushed, prepared):
    files = pushed.dataset(NAME).files()
    shards = [f"data/train-{index:05d}-of-00005.parquet" for index in range(5)]
    others = ["manifest.json", "config.yaml", "vocabulary.safetensors"]
    listed = {file["name"]: file for file in json.loads(files[LISTING])["files"]}
    assert sorted(listed) == sorted([*shards, *others])
    assert sorted(files) == sorted([*listed, LISTING, "README.md", ".gitattributes"])
    front = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert f"mta-prep pull {NAME}" in files["README.md"].decode()
    assert str(Path.home()) not in files["README.md"].decode()


def test_the_library_reads_what_was_pushed(pushed, prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", pushed.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    rows = datasets.load_dataset(NAME, split="train", cache_dir=str(tmp_path / "datasets"))
    theirs = datasets.load_from_disk(str(prepared))
    assert rows.features == theirs.features
    assert rows.to_list() == theirs.to_list()


def test_pushing_again_changes_nothing_and_something_newer_brings_it_up_to_date(
    pushed, push, pull, same, contents, tmp_path
):
    commit = pushed.dataset(NAME).branches["main"]
    assert push()[0] == 0
    assert pushed.dataset(NAME).branches["main"] == commit
    assert not pushed.asked("PUT")
    folder = tmp_path / "same"
    shutil.copytree(same, folder)
    (folder / "rejected.jsonl").write_text("")  # of no rows; gone again in the next push
    assert push(folder=folder)[0] == 0
    assert "rejected.jsonl" in pushed.dataset(NAME).files()
    (folder / "rejected.jsonl").unlink()
    assert push(folder=folder)[0] == 0
    assert "rejected.jsonl" not in pushed.dataset(NAME).files()
    assert pull()[0] == 0
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(folder))


def test_a_push_that_is_cut_off_shows_nothing_and_goes_on(hub, push, pull, prepared, contents, tmp_path):
    hub.trouble = lambda request: "drop" if request.startswith("PUT") and len(hub.objects) >= 3 else None
    refused(push(), Exit.RESOURCE, "connection", "run the same command again")
    assert list(hub.dataset(NAME).files()) == [".gitattributes"]
    there = set(hub.objects)
    hub.trouble, hub.requests[:] = lambda request: None, []
    assert push()[0] == 0
    assert not any(oid in request for request in hub.asked("PUT") for oid in there)
    assert pull()[0] == 0
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(prepared))


def test_a_pull_that_is_cut_off_leaves_no_folder_and_goes_on(pushed, pull, prepared, contents, tmp_path):
    fourth = "data/train-00003-of-00005.parquet"
    pushed.trouble = lambda request: "drop" if request.startswith("GET") and fourth in request else None
    refused(pull(), Exit.RESOURCE, fourth, "run the same command again")
    assert not (tmp_path / "pulled").exists()
    fetched = {request for request in pushed.asked(".parquet") if request.startswith("GET") and fourth not in request}
    pushed.trouble, pushed.requests[:] = lambda request: None, []
    assert pull()[0] == 0
    assert not fetched & set(pushed.requests)
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(prepared))
    assert not hidden(tmp_path)


def test_an_answer_that_is_cut_off_is_asked_for_again(pushed, pull, prepared, contents, tmp_path):
    cut = []

    def once(request):
        if request.startswith("GET") and "00002-of" in request and request not in cut:
            cut.append(request)
            return "cut"
        return None

    pushed.trouble = once
    assert pull()[0] == 0
    assert cut
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(prepared))


@pytest.mark.parametrize("file", ["data/train-00001-of-00005.parquet", MANIFEST, "vocabulary.safetensors"])
def test_a_file_that_was_changed_on_the_hub_is_not_taken(pushed, pull, tmp_path, file):
    content = pushed.dataset(NAME).files()[file]
    pushed.change(NAME, **{file: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]})
    refused(pull(), Exit.STATE, f"{file} of hf://datasets/{NAME}", "is not what was pushed")
    assert not (tmp_path / "pulled").exists()


def test_a_file_that_was_taken_from_the_hub_is_missed(pushed, pull):
    pushed.change(NAME, **{"config.yaml": None})
    refused(pull(), Exit.STATE, "lacks config.yaml, which was pushed")


@pytest.mark.parametrize(
    "name",
    ["../x.json", "/tmp/x.json", "a/../../x.json", "a/b/x.json", "x.py", "weights.pkl", "x", "a\\..\\x.json", ""],
)
def test_no_path_leaves_its_folder_and_nothing_is_taken_that_runs_code(pushed, pull, tmp_path, name):
    listing = json.loads(pushed.dataset(NAME).files()[LISTING])
    listing["files"][0]["name"] = name
    pushed.change(NAME, **{LISTING: json.dumps(listing).encode()})
    refused(pull(), Exit.STATE, "Nothing is taken from", LISTING)
    assert not (tmp_path / "pulled").exists()
    assert not pushed.asked(MANIFEST)


def test_a_shard_of_the_manifest_cannot_be_called_away(pushed, pull, tmp_path):
    files = pushed.dataset(NAME).files()
    manifest = files[MANIFEST].replace(b"data-00000-of-00005.arrow", b"../away-0-of-00005.arrow.")
    changed = relisted(files, {MANIFEST: manifest})
    pushed.change(NAME, **changed)
    refused(pull(), Exit.STATE, "manifest.json is damaged")
    assert not (tmp_path / "pulled").exists()


def relisted(files, changed):
    """Changed files with a list that says they are what was pushed, as somebody who means harm would leave it."""
    import hashlib

    listing = json.loads(files[LISTING])
    for file in listing["files"]:
        if (content := changed.get(file["name"])) is not None:
            file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return changed | {LISTING: json.dumps(listing).encode()}


def test_a_link_in_a_repository_is_not_followed(pushed, pull, tmp_path):
    # as git keeps it, and the Hub gives it out: a small file with the link's target in it
    changed = relisted(pushed.dataset(NAME).files(), {"config.yaml": b"/etc/passwd"})
    pushed.change(NAME, **changed)
    assert pull()[0] == 0
    assert not (tmp_path / "pulled" / "config.yaml").is_symlink()
    assert (tmp_path / "pulled" / "config.yaml").read_bytes() == b"/etc/passwd"


def test_files_that_were_not_pushed_are_not_taken(pushed, pull, tmp_path):
    pushed.change(NAME, **{"run.py": b"import os", "notes.md": b"notes", "data/train-00009-of-00009.parquet": b"x"})
    assert pull()[0] == 0
    assert not any((tmp_path / "pulled" / name).exists() for name in ("run.py", "notes.md", "data"))


def test_a_card_that_was_written_on_is_taken(pushed, pull, tmp_path):
    card = pushed.dataset(NAME).files()["README.md"] + "\n## Thanks\n\nTo ü.\n".encode()
    pushed.change(NAME, **{"README.md": card})
    assert pull()[0] == 0
    assert "To ü." in (tmp_path / "pulled" / "README.md").read_text()


@pytest.mark.parametrize(
    ("token", "parts"),
    [("hf_wrong", ("does not accept the token", "HF_TOKEN")), (None, ("does not accept the token", "hf auth login"))],
)
def test_a_wrong_token_is_told(hub, push, monkeypatch, token, parts):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    refused(push(), Exit.RESOURCE, *parts)
    assert not hub.repositories


def test_a_token_that_may_not_write_there_is_told(hub, push):
    refused(push(name="somebody-else/sample"), Exit.RESOURCE, "may not write there")


def test_what_others_may_not_see_is_private(hub, push, pull, monkeypatch):
    assert push("--private")[0] == 0
    assert hub.dataset(NAME).private
    monkeypatch.delenv("HF_TOKEN")
    refused(pull(), Exit.INPUT, "no such repository, or it is private")


def test_a_public_repository_is_not_filled_by_who_asks_for_a_private_one(pushed, push):
    refused(push("--private"), Exit.USAGE, "is public")


def test_a_repository_with_other_things_in_it_is_left_alone(pushed, push):
    pushed.change(NAME, **{LISTING: None})
    before = pushed.dataset(NAME).branches["main"]
    refused(push(), Exit.USAGE, "holds other files, which mta-prep did not push", "Choose another name")
    assert pushed.dataset(NAME).branches["main"] == before


def test_a_repository_with_another_kind_of_thing_in_it_is_left_alone(pushed, push):
    listing = pushed.dataset(NAME).files()[LISTING].replace(b'"dataset"', b'"teacher-cache"')
    pushed.change(NAME, **{LISTING: listing})
    refused(push(), Exit.USAGE, "holds a teacher cache", "is a prepared dataset")


def test_a_repository_that_changes_meanwhile_is_not_overwritten(pushed, push, same):
    def change_first(request):
        if "/commit/" in request:
            pushed.change(NAME, **{"notes.md": b"mine"})

    pushed.trouble = change_first
    refused(push(folder=same), Exit.STATE, "changed by somebody else")
    assert pushed.dataset(NAME).files()["notes.md"] == b"mine"


def test_a_licence_has_to_be_stated(hub, push, prepared, tmp_path):
    refused(
        push(licences=()), Exit.USAGE, "--license (of what is pushed) and --text-license (of the texts)", "README.md"
    )
    refused(push(licences=LICENCES[:2]), Exit.USAGE, "pass --text-license (of the texts)")
    refused(push(licences=("--license", "CC BY", *LICENCES[2:])), Exit.USAGE, "is no licence as the Hub spells them")
    assert not hub.requests
    folder = tmp_path / "stated"
    shutil.copytree(prepared, folder)
    front, text = cards.parted((folder / "README.md").read_text())
    (folder / "README.md").write_text(cards.joined({**front, "license": "mit", "text_license": "cc0-1.0"}, text))
    assert push(folder=folder, licences=())[0] == 0
    front, text = cards.parted(hub.dataset(NAME).files()["README.md"].decode())
    assert (front["license"], front["text_license"]) == ("mit", "cc0-1.0")
    assert text.count("## Sharing") == 1
    refused(push(licences=("--license", "no-such", *LICENCES[2:])), Exit.USAGE, "The Hub refuses the card", "license")


def test_revisions(pushed, push, pull, prepared, same, contents, tmp_path):
    assert push("--revision", "other-student", folder=same)[0] == 0
    assert pull(f"{NAME}@other-student")[0] == 0
    assert without_card(contents(tmp_path / "pulled")) == without_card(contents(same))
    assert pull(f"hf://datasets/{NAME}", tmp_path / "main")[0] == 0
    assert without_card(contents(tmp_path / "main")) == without_card(contents(prepared))
    refused(pull(f"{NAME}@no-such", tmp_path / "none"), Exit.INPUT, "no such revision")


def test_what_is_not_there_is_told(hub, pull, push, tmp_path, monkeypatch):
    refused(pull(), Exit.INPUT, "no such repository")
    refused(pull("a name"), Exit.USAGE, "is no name on the Hub")
    refused(push(folder=tmp_path / "none"), Exit.STATE, "There is no folder")
    refused(push(folder=tmp_path), Exit.USAGE, "no finished dataset or cache, no exported student and no parser")
    hub.trouble = lambda request: 503
    refused(pull(), Exit.RESOURCE, "the Hub answers 503")
    hub.trouble = lambda request: "drop"
    refused(pull(), Exit.RESOURCE, "the Hub cannot be reached")
    refused(push(), Exit.RESOURCE, "the Hub cannot be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(pull(), Exit.RESOURCE, "HF_HUB_OFFLINE is set")
    refused(push(), Exit.RESOURCE, "HF_HUB_OFFLINE is set")


def test_what_answers_otherwise_than_the_hub_names_no_folder(pushed, pull, tmp_path):
    repository = pushed.dataset(NAME)
    repository.commits["../../away"] = repository.files()
    repository.branches["main"] = "../../away"
    refused(pull(), Exit.STATE, "does not answer as the Hub does")


def test_a_folder_that_holds_it_already_is_read_through(pushed, pull, prepared, tmp_path):
    assert pull()[0] == 0
    assert "already, every file checked" in pull()[1]
    shard = tmp_path / "pulled" / "data-00002-of-00005.arrow"
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    refused(pull(), Exit.STATE, "is damaged: data-00002-of-00005.arrow")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    refused(pull(out=tmp_path / "mine"), Exit.STATE, "already holds something else")
    refused(pull(out=tmp_path / "mine" / "thesis.txt"), Exit.STATE, "is a file")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("out", [".", "..", "/", "new/.."])
def test_the_folder_that_one_stands_in_does_not_give_way(pushed, pull, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    refused(pull(out=out), Exit.USAGE, "is the folder you are in, or one around it")
    assert not pushed.requests


def test_a_folder_may_be_told_by_one_in_it(pushed, pull, tmp_path):
    (tmp_path / "target" / "inner").mkdir(parents=True)
    refused(pull(out=tmp_path / "target" / "inner" / ".."), Exit.STATE, "holds something else")
    (tmp_path / "target" / "inner").rmdir()
    assert not hidden(tmp_path)


@pytest.mark.parametrize(
    ("card", "code"),
    [(b"---\nlicense: \xff\n---\n", Exit.USAGE), (b"---\n" + b"[" * 5_000 + b"\n---\n", Exit.OK)],
    ids=["no-text", "deep"],
)
def test_a_card_may_be_anything(hub, push, prepared, tmp_path, card, code):
    folder = tmp_path / "carded"
    shutil.copytree(prepared, folder)
    (folder / "README.md").write_bytes(card)
    got, _, err = push(folder=folder)
    assert got == code, err
    assert ("is not UTF-8 (byte 14)" in err) == (code == Exit.USAGE)


def test_a_damaged_folder_is_not_pushed(hub, push, prepared, tmp_path):
    for number, file in enumerate(["data-00002-of-00005.arrow", "vocabulary.safetensors"]):
        folder = tmp_path / f"damaged-{number}"
        shutil.copytree(prepared, folder)
        content = bytearray((folder / file).read_bytes())
        content[-9] ^= 1
        (folder / file).write_bytes(content)
        refused(push(folder=folder), Exit.STATE, "is damaged", file, "another checksum")
        (folder / file).unlink()
        refused(push(folder=folder), Exit.STATE, "is damaged", file, "is missing")
    assert list(hub.dataset(NAME).files()) == [".gitattributes"]


def test_other_bytes_of_the_same_rows_keep_their_fingerprint(pushed, pull, prepared, tmp_path, monkeypatch):
    """As a version of pyarrow may write that lays streams out in another way."""

    def in_other_batches(stream, table):
        with restoring.pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)

    monkeypatch.setattr(restoring, "write_shard", in_other_batches)
    assert pull()[0] == 0
    before, after = read_manifest(prepared), read_manifest(tmp_path / "pulled")
    assert after.shards != before.shards
    assert after.model_copy(update={"shards": before.shards}) == before
    findings = verify(tmp_path / "pulled", quick=False, moved={})
    assert findings.problems == []
