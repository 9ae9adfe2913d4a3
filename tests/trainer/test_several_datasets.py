"""Runs on two datasets: the same losses on any number of ranks and micro-batches, with the teacher live, and when gone on."""

import shutil

import pytest
import yaml

from launching import assert_same, compared, finish, launch, metrics, told

pytestmark = pytest.mark.xdist_group("trainer")

STEPS = 4
#: Sums in another order.
ANOTHER_ORDER = 1e-4
#: Relative; relations are cached as int16.
CACHED = 1e-4
CHUNKS = {"student": 2, "teacher": 4, "granularity": "chunks"}
#: Of every kind, with projectors that one dataset alone reaches, and none on logits of the second.
OBJECTIVES = {
    "ce": {},
    "srkl": {"reduce": "document"},
    "dsa": {"data": ["default", "short"], "weight": 2.0},
    "hidden_short": {"term": "hidden", "data": "short", "weight": 0.2},
    "hidden": {"layers": [CHUNKS], "level": "unit", "weight": 0.2},
}


@pytest.fixture(scope="module")
def values(folders):
    """Of a config; keyword arguments override its `data`."""

    def make(objectives=OBJECTIVES, **data):
        short = {"dataset": str(folders["same"]), "caches": list(map(str, folders["caches"])), "limit": 9}
        return {
            "objectives": objectives,
            "steps": STEPS,
            "checkpoint": {"every": 2},
            "data": {"more": {"short": short}, "held_out": 2, **data},
        }

    return make


@pytest.fixture(scope="module")
def runs(config, folders, values, tmp_path_factory):
    """Runs that are compared with each other, by name."""
    base = tmp_path_factory.mktemp("several")
    live = {"teacher": "live", "teacher_model": {"model": str(folders["teacher"])}}
    first_idle = {"ce_short": {"term": "ce", "data": "short"}, "dsa": {}}  # logits of the second alone
    of_ranks = {
        1: {
            "plain": values(),
            "parts": values(micro_batches=2),
            "live": values() | live,
            "joined": values(join="prompt"),
            "late": values(first_idle),
        },
        2: {
            "two-zero2": values() | {"deepspeed": "zero2"},
            "two-zero3": values() | {"deepspeed": "zero3"},
            "two-late-zero3": values(first_idle) | {"deepspeed": "zero3"},
            "two-late-offload": values(first_idle) | {"deepspeed": "zero2-offload"},
        },
    }
    for ranks, every in of_ranks.items():
        launch(ranks, finish, *(config(base / name, **given) for name, given in every.items()))
    return {name: base / name for every in of_ranks.values() for name in every}


@pytest.mark.parametrize(
    ("name", "other", "tolerance"),
    [
        ("parts", "plain", ANOTHER_ORDER),
        ("two-zero2", "plain", ANOTHER_ORDER),
        ("two-zero3", "plain", ANOTHER_ORDER),
        ("live", "plain", CACHED),
        ("two-late-zero3", "late", ANOTHER_ORDER),
        ("two-late-offload", "late", ANOTHER_ORDER),
    ],
)
def test_every_logged_loss_is_the_same_whatever_the_road(runs, name, other, tolerance):
    assert_same(metrics(runs[name]), metrics(runs[other]), tolerance)


def test_every_term_is_told_of_training_and_held_out(runs):
    first, *_, last = metrics(runs["plain"])
    assert OBJECTIVES.keys() <= first.keys()
    assert {f"held_out_{name}" for name in OBJECTIVES} <= last.keys()
    weights = {name: options.get("weight", 1.0) for name, options in OBJECTIVES.items()}
    assert first["loss"] == pytest.approx(sum(weights[name] * first[name] for name in weights), rel=1e-6)


def test_what_is_said_and_the_card_name_both(runs):
    said = runs["plain"].parent.joinpath("plain.log").read_text()
    assert "22 rows of `default`, 7 rows of `short`, 4 of each a step" in " ".join(said.split())
    card = (runs["plain"] / "student" / "README.md").read_text()
    assert card.count("fingerprint") == 2
    assert "dataset `short`" in card
    assert "4 documents of each dataset" in card


def test_partners_are_told_and_rows_without_one_are_not_used(runs):
    said = " ".join(runs["joined"].parent.joinpath("plain.log").read_text().split())
    assert "7 rows of `default`, 7 rows of `short`, 4 of each a step" in said
    assert "15 of 24 rows of `default` are not used: no other row answers their prompt." in said


@pytest.fixture(scope="module")
def cut_off(runs, tmp_path_factory):
    """The plain run as it lies there if it was killed when it had done two steps, and its config."""

    def make():
        out = tmp_path_factory.mktemp("cut-off") / "run"
        shutil.copytree(runs["plain"], out)
        shutil.rmtree(out / "student")
        shutil.rmtree(out / "checkpoints" / f"step-{STEPS:08d}")
        values = yaml.safe_load((out / "config.yaml").read_text()) | {"out": str(out)}
        for file in (out / "config.yaml", out.with_suffix(".yaml")):
            file.write_text(yaml.safe_dump(values))
        return out

    return make


def test_gone_on_is_the_same_as_never_stopped(runs, cut_off):
    out = cut_off()
    launch(1, finish, out.with_suffix(".yaml"))
    assert list(map(compared, metrics(out))) == list(map(compared, metrics(runs["plain"])))


def test_what_the_second_dataset_may_not_be_is_said_in_one_sentence(config, folders, values, cut_off, tmp_path):
    short = values()["data"]["more"]["short"]
    other_limit = cut_off().with_suffix(".yaml")
    other_limit.write_text(other_limit.read_text().replace("limit: 9", "limit: 8"))
    cases = {
        "unknown": (
            values() | {"objectives": {"ce": {"data": "shrot"}}},
            2,
            "no dataset `shrot`; known are default, short",
        ),
        "unused": (values() | {"objectives": {"ce": {}}}, 2, "no term looks at the dataset `short`"),
        "cache": (
            values(more={"short": short | {"dataset": str(folders["turns"])}}),
            2,
            "is a cache of another dataset than",
        ),
        "student": (
            values({"ce": {"data": ["default", "short"]}}, more={"short": short | {"dataset": str(folders["other"])}}),
            2,
            "prepared for different students' tokenizers",
        ),
        "signals": (values(more={"short": short | {"caches": []}}), 2, "No cache in `data.more.short.caches` has"),
        "nowhere": (values(more={"short": {"dataset": "no-such-dataset"}}), 4, "no-such-dataset"),
    }
    files = [config(tmp_path / name, **given) for name, (given, _, _) in cases.items()]
    *outcomes, (code, said) = told(*files, other_limit)
    assert (code, "its `data.more.short.limit` is 9, now it is 8" in " ".join(said.split())) == (4, True), said
    for (code, said), (_, expected, message) in zip(outcomes, cases.values(), strict=True):
        assert (code, message in " ".join(said.split())) == (expected, True), said
