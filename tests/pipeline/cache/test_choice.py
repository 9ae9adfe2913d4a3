"""Recipes and layers to a config: the paper's own pairs, what is dropped and why, what is refused."""

import pytest

from pipeline.cache.choice import Choice, automatic_layers, listed_layers, mapped_layers, resolved, stated
from schemas import commands
from schemas.config import CacheConfig
from schemas.errors import UsageError
from schemas.signals import LAYER_SIGNALS, RECIPES
from trainer.teacher.shape import TeacherShape

SHAPE = TeacherShape(depth=32, hidden_size=64, vocabulary=1000, architecture="LlamaForCausalLM", dtype="bfloat16")
VALUES = {"dataset": "d", "teacher": {"model": "m"}}


def settle(choice=Choice(), same_tokens=True, **values):  # noqa: B008  # frozen
    config, notes = stated(VALUES | values, "test", choice, same_tokens)
    return resolved(config, choice, SHAPE), notes


def pairs(layers):
    return [(each.layer, each.granularity) for each in layers]


@pytest.mark.parametrize(
    ("student", "student_depth", "teacher_depth", "expected"),
    [  # the pairs of arXiv 2605.01374
        ([6, 9, 12], 12, 48, [24, 36, 48]),
        ([14, 16, 18, 20, 22, 24], 24, 24, [14, 16, 18, 20, 22, 24]),
        ([16, 18, 20, 22, 24], 24, 32, [21, 24, 26, 29, 32]),
    ],
)
def test_the_papers_pairs_of_layers(student, student_depth, teacher_depth, expected):
    found = pairs(mapped_layers(student, student_depth, teacher_depth))
    assert [layer for layer, _ in found] == expected
    assert [name for _, name in found] == ["words"] + ["chunks"] * (len(expected) - 1)
    assert pairs(mapped_layers(student[::-1], student_depth, teacher_depth)) == found


def test_the_window_of_new_caches_and_of_old_ones():
    """Configs of caches older than the key hold all pairs; a new cache is of the default's, unless it says otherwise."""
    for values, window in ({}, 256), ({"window": None}, None), ({"window": 9}, 9):
        config, _ = settle(Choice("mta-dsa"), **values)
        assert config.window == window
        told = commands.cache_teacher(config)
        assert ("window" in told) == (window != 256), told
    assert CacheConfig.parse(VALUES | {"signals": ["relations"]}, "test").window is None
    with pytest.raises(UsageError, match="`window`"):
        settle(window=1)


def test_automatic_layers():
    assert pairs(automatic_layers(32)) == [(16, "words"), (24, "chunks"), (32, "chunks")]
    assert pairs(automatic_layers(1)) == [(1, "words")]
    assert settle()[0].layers == automatic_layers(32)
    assert settle(Choice(layers="auto"))[0].layers == automatic_layers(32)


def test_layers_as_written():
    assert pairs(listed_layers("24:words, 36:chunks,48:phrases")) == [(24, "words"), (36, "chunks"), (48, "phrases")]
    config, _ = settle(Choice(layers="30:chunks,0:words"))
    assert pairs(config.layers) == [(0, "words"), (30, "chunks")]
    config, _ = settle(Choice(student_layers="6,9,12", student_depth=12))
    assert pairs(config.layers) == [(16, "words"), (24, "chunks"), (32, "chunks")]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
    config, notes = settle(Choice(recipe=name))
    assert set(config.signals) == set(RECIPES[name])
    assert notes == []
    assert config.state_tokens == ("all" if name in ("fdd", "sra") else "covered")
    assert config.response_only == (not name.startswith("mta"))
    assert settle(Choice(recipe=name), response_only=not config.response_only)[0].response_only != config.response_only
    assert (config.layers == ()) == (not LAYER_SIGNALS & set(config.signals))


def test_no_more_probabilities_than_there_are():
    assert settle(Choice(recipe="uld"))[0].sorted == SHAPE.vocabulary == 1000
    assert settle(Choice(recipe="uld"), sorted=12)[0].sorted == 12


def test_sra_is_of_the_last_layer_unless_told_otherwise():
    assert pairs(settle(Choice(recipe="sra"))[0].layers) == [(32, "chunks")]
    assert pairs(settle(Choice(recipe="sra", layers="16:words,24:chunks"))[0].layers) == [(16, "words"), (24, "chunks")]
    given = {"layers": [{"layer": 3, "granularity": "words"}]}
    assert pairs(settle(Choice(recipe="sra"), **given)[0].layers) == [(3, "words")]


def test_mta_keeps_states_only_of_equal_tokens_and_says_so():
    assert settle()[0].signals == ("relations", "states")
    config, notes = settle(same_tokens=False)
    assert config.signals == ("relations",)
    assert "`states` are left out" in notes[0]
    assert settle(Choice(signals="states,relations"), same_tokens=False)[0].signals == ("relations", "states")


def test_the_command_line_goes_before_the_file():
    base = {"signals": ["final"], "state_tokens": "all", "layers": [{"layer": 3, "granularity": "words"}]}
    assert settle(**base | {"layers": []})[0].signals == ("final",)
    config, _ = settle(Choice(recipe="mta-dsa"), **base)
    assert (config.signals, config.state_tokens, pairs(config.layers)) == (("relations",), "all", [(3, "words")])
    assert pairs(settle(Choice(recipe="mta", layers="5:words"), **base)[0].layers) == [(5, "words")]


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice(recipe="mtb"), "no recipe 'mtb'"),
        (Choice(recipe="mta", signals="units"), "--recipe and --signals"),
        (Choice(signals="relation"), "signals"),
        (Choice(signals=""), "signals"),
        (Choice(layers="33:words"), r"has layers 0 \(embeddings\) to 32, not 33"),
        (Choice(layers="3"), "'3' is no layer with its units"),
        (Choice(layers="3:sentences"), "words, chunks, phrases"),
        (Choice(layers="-1:words"), "'-1' is no layer"),
        (Choice(layers="³:words"), "is no layer"),
        (Choice(layers="9" * 5000 + ":words"), "is no layer"),
        (Choice(student_layers="9" * 5000, student_depth=12), "--student-layers: '9+[^ ]* is no layer"),
        (Choice(layers="3:words,3:chunks"), "Teacher layer 3 is asked for with words and with chunks"),
        (Choice(layers="3:words", student_layers="1", student_depth=2), "--layers and --student-layers"),
        (Choice(student_layers="1"), "go together"),
        (Choice(student_layers="13", student_depth=12), "from 0 to --student-depth"),
        (Choice(student_layers="", student_depth=12), "got none"),
        (Choice(recipe="logits", layers="3:words"), "once a document"),
        (Choice(signals="relations", layers=""), "none is chosen"),
        (Choice(signals="attention", layers="0:words"), "attend to nothing"),
    ],
)
def test_what_does_not_fit_is_told(choice, told):
    with pytest.raises(UsageError, match=told):
        settle(choice)


def test_more_likely_tokens_than_there_are():
    with pytest.raises(UsageError, match="more than the 1000 tokens"):
        settle(Choice(signals="topk"), topk=1001)
