"""Training configs: every number in them is finite and in its range, and what is wrong is named by its key."""

import math
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import hypothesis
import pytest
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import keys
from schemas.config import CacheConfig, CsvConfig, GenerateConfig, ParseConfig, Strict
from schemas.errors import UsageError
from schemas.plain import Plain
from schemas.problems import worded
from schemas.training import OptimConfig, StudentConfig, TrainConfig
from trainer.objectives import REGISTRY
from trainer.objectives.base import Options


def models(annotation) -> Iterator[type[Strict]]:
    """A config and every config in it."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for part in get_args(annotation):
        yield from models(part)


def holds_numbers(annotation):
    return annotation is float or any(map(holds_numbers, get_args(annotation)))


ROOTS = [TrainConfig, CacheConfig, ParseConfig, GenerateConfig, *(term.options for term in REGISTRY.values())]
CONFIGS = sorted({model for root in ROOTS for model in models(root)}, key=lambda model: model.__name__)
NUMBERS = [
    (model, name) for model in CONFIGS for name, field in model.model_fields.items() if holds_numbers(field.annotation)
]


def test_the_numbers_are_there():
    names = {name for _, name in NUMBERS}
    assert {"lr", "weight", "start", "betas", "dropout", "temperature", "skew", "trajectory", "epochs"} <= names


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -5.0])
@pytest.mark.parametrize(("model", "name"), NUMBERS)
def test_no_number_is_infinite_or_below_zero(model, name, value):
    wrong = [value, value] if name == "betas" else value
    with pytest.raises(ValidationError) as caught:
        model.model_validate({name: wrong})
    assert any(error["loc"][0] == name and error["type"] != "missing" for error in caught.value.errors())


def plain_types(annotation):
    parts = get_args(annotation)
    return {kind for part in parts for kind in plain_types(part)} if parts else {annotation}


@pytest.mark.parametrize("model", CONFIGS)
def test_true_and_false_are_no_numbers(model):
    for name, field in model.model_fields.items():
        kinds = plain_types(field.annotation)
        if not kinds & {int, float} or bool in kinds:
            continue
        for value in (True, False):
            for given in (value, [value], [0.5, value]):
                with pytest.raises(ValidationError) as caught:
                    model.model_validate({name: given})
                told = [error for error in caught.value.errors() if error["loc"][0] == name]
                assert told, (name, given)
                if given is value:
                    wanted = "Value error, a number is wanted, and not true or false"
                    assert wanted in {error["msg"] for error in told} or tuple in map(get_origin, [field.annotation])


def problems_of(model, name, value):
    """What is told of a key's value."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate({name: value})
    return [worded(problem) for problem in caught.value.errors() if problem["loc"][0] == name]


def takes_anything(annotation):
    """Also what no YAML gives back."""
    return annotation is Any or (annotation != Plain and any(map(takes_anything, get_args(annotation))))


def test_what_may_be_anything_is_what_yaml_gives_back():
    assert takes_anything(dict[str, Any])
    assert not takes_anything(dict[str, dict[str, Plain]])
    assert not [
        (model, name) for model in CONFIGS for name, of in model.model_fields.items() if takes_anything(of.annotation)
    ]


def endless():
    values = []
    values.append(values)
    return values


def doubled(times):
    values = [0, 1]
    for _ in range(times):
        values = [values, values]
    return values


def ce(options):
    """A training config with a term of such options."""
    return {"student": {"model": "m"}, "data": {"dataset": "d"}, "objectives": {"ce": options}}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers(), inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@hypothesis.settings(max_examples=40)
@hypothesis.given(value=ANYTHING)
def test_what_is_taken_comes_back_from_the_file_that_is_written(value):
    config = TrainConfig.parse(ce({"data": value}), "here")
    assert TrainConfig.parse(keys.load(config.to_yaml()), "again") == config


LISTS = [
    (model, name)
    for model in CONFIGS
    for name, field in model.model_fields.items()
    if tuple in {get_origin(kind) for kind in (field.annotation, *get_args(field.annotation))} and name != "betas"
]


def test_the_lists_are_there():
    assert {"inputs", "signals", "caches", "layers", "targets", "on"} <= {name for _, name in LISTS}


@pytest.mark.parametrize(("value", "written"), [("it", "[it]"), (3, "[3]"), ({"layer": 3}, "[{layer: 3}]")])
@pytest.mark.parametrize(("model", "name"), LISTS)
def test_a_value_alone_is_told_how_a_list_of_it_is_written(model, name, value, written):
    assert f"a list is wanted, also of one: {written}" in problems_of(model, name, value)


@pytest.mark.parametrize("value", [0.9, "it", [], [0.9], {"first": 0.9}])
def test_of_a_list_of_two_is_told_how_it_is_written(value):
    assert problems_of(OptimConfig, "betas", value) == ["two numbers are wanted, as [0.9, 0.999]"]


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("value", ["word", 3, [], ["word"], {"k": 1}, [[]], True, 0.5])
def test_nothing_is_told_in_words_of_python(model, value):
    for name in model.model_fields:
        try:
            model.model_validate({name: value})
        except ValidationError as error:
            for told in (worded(problem) for problem in error.errors()):
                assert not any(
                    word in told for word in ("tuple", "dictionary", "instance", "boolean", "after validation")
                )


@pytest.mark.parametrize("model", CONFIGS)
def test_no_name_is_empty(model):
    """An empty path is the current folder. Only a quote of CSV may be none."""
    for name, field in model.model_fields.items():
        if str not in plain_types(field.annotation) or model is CsvConfig:
            continue
        if dict in {get_origin(field.annotation), *map(get_origin, get_args(field.annotation))}:
            continue
        for given in ("", [""]):
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: given})
            assert name in {error["loc"][0] for error in caught.value.errors() if error["type"] != "missing"}, name


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (Options, {"weight": True}, r"`weight`: a number is wanted, and not true or false, got True"),
        (OptimConfig, {"betas": [0.9, False]}, r"`betas\.1`: a number is wanted, and not true or false, got False"),
        (Options, {"weight": {"start": True, "end": 1}}, r"`weight\.start`: a number is wanted"),
        (Options, {"weight": math.nan}, r"`weight`: input should be a finite number, got nan"),
        (Options, {"weight": -5}, r"`weight`: input should be greater than or equal to 0, got -5"),
        (
            Options,
            {"weight": {"start": 1, "end": math.inf}},
            r"`weight\.end`: input should be a finite number, got inf",
        ),
        (Options, {"weight": {"start": 1, "ned": 2, "end": 1}}, r"unknown key `weight\.ned`; did you mean `end`"),
        (OptimConfig, {"lr": math.inf}, r"`lr`: input should be a finite number, got inf"),
        (OptimConfig, {"betas": [0.9, 1.0]}, r"`betas\.1`: input should be less than 1"),
        (
            StudentConfig,
            {"model": "m", "config": {"rope": {"theta": [1.0, math.nan]}}},
            r"`config\.rope`: `theta\.1` is nan",
        ),
        (
            StudentConfig,
            {"model": "m", "config": {"std": -math.inf}},
            r"`config\.std`: input should be a finite number",
        ),
        (TrainConfig, ce({"weight": math.inf}), r"`objectives\.ce\.weight`: input should be a finite"),
        (TrainConfig, ce({"weight": {"end": math.nan}}), r"`objectives\.ce\.weight`: `end` is nan, no"),
        (TrainConfig, ce({"data": {"default"}}), r"`objectives\.ce\.data`: neither text nor a number"),
        (TrainConfig, ce({"data": [b"\xff"]}), r"`objectives\.ce\.data`: `0` is neither text nor"),
        (TrainConfig, ce({"data": {True: 1}}), r"`objectives\.ce\.data`: a key is True, no text"),
        (TrainConfig, ce({"data": {1: 1, "1": 2}}), r"`objectives\.ce\.data`: a key stands twice"),
        (TrainConfig, ce({"data": {math.inf: 1}}), r"`objectives\.ce\.data`: a key is inf, no text"),
        (
            TrainConfig,
            ce({"data": endless()}),
            r"`objectives\.ce\.data`: it is nested deeper than 64 levels, or holds itself",
        ),
        (TrainConfig, ce({"data": doubled(50)}), r"`objectives\.ce\.data`: more than 10,000 values stand in it"),
        (OptimConfig, {"betas": [0.9] * 3}, r"`betas`: at most 2 values should stand here, got \[0"),
        (
            CacheConfig,
            {"dataset": "d", "teacher": "m", "signals": ["final"]},
            "`teacher`: a mapping of keys to values is",
        ),
        (StudentConfig, {"model": "m", "init": "fresh"}, r"`init`: input should be 'pretrained' or 'config'"),
        (StudentConfig, {"model": "m", "init": {"layer": [1]}}, r"`init\.layers`: field required"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(model, values, message):
    with pytest.raises(UsageError, match=rf"^here: .*{message}"):
        model.parse(values, "here")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_one_that_every_generator_takes(seed):
    for config in (TrainConfig, *models(TrainConfig)):
        if "seed" in config.model_fields:
            with pytest.raises(ValidationError) as caught:
                config.model_validate({"seed": seed})
            assert "seed" in {error["loc"][0] for error in caught.value.errors()}
