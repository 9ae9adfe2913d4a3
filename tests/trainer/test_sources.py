"""What a run has learned from is compared by content: another dataset, cache, teacher or student in its place is seen."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from schemas.errors import StateError
from schemas.training import TrainConfig
from trainer.datasets import open_datasets
from trainer.sources import require_same_sources, sources

RELATIONS = {"signals": ["relations"], "layers": [{"layer": 2, "granularity": "words"}]}


@pytest.fixture
def places(prepared, make_cache, tiny_teacher, tmp_path):
    """Everything that a run learns from, in places of its own where it may be exchanged."""
    folders = {"dataset": prepared, "cache": make_cache(**RELATIONS), "teacher": tiny_teacher, "student": tiny_teacher}
    return {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}


def sources_of(places, *, teacher="live", init="pretrained"):
    config = TrainConfig.parse(
        {
            "student": {"model": str(places["student"]), "init": init},
            "data": {"dataset": str(places["dataset"]), "caches": [str(places["cache"])]},
            "teacher": teacher,
            "teacher_model": {"model": str(places["teacher"])},
            "objectives": {"ce": {}},
        },
        "test",
    )
    return sources(config, open_datasets(config).values())


def exchange(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_places_and_names_are_nothing(places, tmp_path):
    before = sources_of(places)
    moved = {name: folder.rename(tmp_path / f"{name} elsewhere") for name, folder in places.items()}
    assert sources_of(moved) == before
    require_same_sources(before, sources_of(moved), tmp_path, 3)


def another_student_tokenizer(places, same, **_):
    exchange(places["dataset"], same)


def another_storage(places, make_cache, **_):
    exchange(places["cache"], make_cache(**RELATIONS | {"signals": ["units"]}))


def another_teacher_of_the_cache(places, **_):
    path = places["cache"] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["teacher"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))


def another_live_teacher(places, **_):
    other_weights(places["teacher"])


def another_student(places, **_):
    other_weights(places["student"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (another_student_tokenizer, r"`data\.dataset`.*\(fingerprint: "),
        (another_storage, r"`data\.caches\.0`.*\(signals: \[\"relations\"\] then, \[\"units\"\] now\)"),
        (another_teacher_of_the_cache, r"`data\.caches\.0`.*\(teacher's sha256: .* then, 0{16}… now\)"),
        (another_live_teacher, r"`teacher_model`.*\(sha256: "),
        (another_student, r"`student`.*\(sha256: "),
    ],
)
def test_another_in_its_place_is_told(places, same, make_cache, tmp_path, change, told):
    before = sources_of(places)
    change(places, same=same, make_cache=make_cache)
    with pytest.raises(StateError, match=rf"^{told}.*choose another `out`, or pass --overwrite"):
        require_same_sources(before, sources_of(places), tmp_path, 3)


def test_only_what_is_looked_at_counts(places):
    """A live teacher that is not run, and weights that a fresh student does not take, may change."""
    before = sources_of(places, teacher="cached", init="config")
    other_weights(places["teacher"])
    other_weights(places["student"])
    assert sources_of(places, teacher="cached", init="config") == before
    (places["student"] / "model.safetensors").unlink()
    assert sources_of(places, teacher="cached", init="config") == before


def test_each_dataset_is_told_by_its_own_key(places, same, tmp_path):
    def now():
        values = {
            "student": {"model": str(places["student"])},
            "objectives": {"ce": {}, "ce_b": {"term": "ce", "data": "b"}},
        }
        more = {"b": {"dataset": str(places["other"]), "caches": [str(places["cache"])]}}
        config = TrainConfig.parse(values | {"data": {"dataset": str(places["dataset"]), "more": more}}, "test")
        return sources(config, open_datasets(config).values())

    places["other"] = shutil.copytree(places["dataset"], tmp_path / "other")
    before = now()
    assert before.keys() == {"data.dataset", "data.more.b.dataset", "data.more.b.caches.0", "student"}
    for name in ("dataset", "other"):
        exchange(places[name], same)
    with pytest.raises(StateError, match=r"^`data\.dataset`"):
        require_same_sources(before, now(), tmp_path, 3)
    with pytest.raises(StateError, match=r"^`data\.more\.b\.dataset`.*\(fingerprint: "):
        require_same_sources(before, {**now(), "data.dataset": before["data.dataset"]}, tmp_path, 3)


def test_more_or_fewer_are_told(tmp_path):
    one, two = ({key: {"sha256": "a"} for key in keys} for keys in (["teacher_model"], []))
    for before, now in ((one, two), (two, one)):
        with pytest.raises(StateError, match=r"`teacher_model`.*nothing"):
            require_same_sources(before, now, tmp_path, 1)
