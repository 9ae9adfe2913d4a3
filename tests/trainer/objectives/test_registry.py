"""The registry: every term is built from a config by its name; what does not fit is refused in one sentence."""

import pytest
import torch
from torch import nn

from schemas.errors import UsageError
from schemas.training import PairConfig, TrainConfig
from trainer.objectives import REGISTRY, build, on_run_layers
from trainer.objectives.base import LogitObjective, Objective, RowObjective, Setting, StateObjective
from trainer.objectives.layers import LayerTerm

LOW = PairConfig(student=1, teacher=3, granularity="words")
HIGH = PairConfig(student=2, teacher=6, granularity="chunks")
SETTING = Setting((LOW, HIGH), student_size=4, teacher_size=6, student_last=(2, 4), teacher_last=(6, 6))


def test_every_term_is_of_one_kind_and_has_its_own_options():
    assert list(REGISTRY) == [
        "ce",
        "fkl",
        "rkl",
        "sfkl",
        "srkl",
        "akl",
        "js",
        "tvd",
        "fdd",
        "dsa",
        "hidden",
        "dskd",
        "dwa",
        "dskd_eta",
        "soft_dtw",
        "uld",
        "gold",
        "mined",
        "span_cos",
        "span_geometry",
        "span_kl",
    ]
    assert len(set(REGISTRY.values())) == len(REGISTRY)
    for term in REGISTRY.values():
        assert sum(issubclass(term, kind) for kind in (StateObjective, LogitObjective, RowObjective)) == 1
        assert term.options.parse({}, "test").weight_at(0.3) == 1.0


def test_every_term_builds_without_options():
    built = build({name: {} for name in REGISTRY}, SETTING, "objectives")
    assert {name: type(term) for name, term in built.items()} == REGISTRY
    assert [name for name, term in built.items() if term.pairs] == ["fdd", "dsa", "hidden"]
    for term in built.values():
        assert isinstance(term, Objective)
        assert set(term.needs().layers) <= {3, 6}
        assert set(term.student_layers()) <= {1, 2}


def test_projectors_are_linear_layers():
    """As batches of another dataset pass them by (`Objective.idle`)."""
    for name, term in build({name: {} for name in REGISTRY}, SETTING, "objectives").items():
        linear = {
            parameter for each in term.modules() if isinstance(each, nn.Linear) for parameter in each.parameters()
        }
        assert {*term.parameters()} == linear, name
        zeros = [*term.idle()]
        assert bool(zeros) == bool(linear)
        for zero in zeros:
            zero.backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in linear), name


def test_the_configs_order_is_kept_and_its_options_arrive():
    built = build({"hidden": {"weight": 0.2, "bias": False}, "dsa": {"metric": "angle"}}, SETTING, "objectives")
    assert list(built) == ["hidden", "dsa"]
    assert built["hidden"].config.weight_at(0.5) == 0.2
    assert len(list(built["hidden"].parameters())) == 2  # two projectors without bias
    assert built["dsa"].config.metric == "angle"


def test_projectors_are_a_function_of_the_seed():
    torch.manual_seed(5)
    one = nn.ModuleDict(build({"hidden": {}}, SETTING, "objectives")).state_dict()
    torch.manual_seed(5)
    other = nn.ModuleDict(build({"hidden": {}}, SETTING, "objectives")).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"dsaa": {}}, r"^objectives: unknown term `dsaa`; did you mean `dsa`\?$"),
        ({"srlk": {}}, r"did you mean `srkl`\?"),
        ({"zzz": {}}, r"known terms: ce, fkl, .*hidden, .*\.$"),
        ({"dsa": {"metrik": "angle"}}, r"^objectives\.dsa: unknown key `metrik`; did you mean `metric`\?$"),
        ({"hidden": {"weight": "much"}}, r"^objectives\.hidden: `weight"),
        (
            {"dsa": {}, "hidden": {"layers": [{"student": 1, "teacher": 3, "granularity": "chunks"}]}},
            r"^objectives\.hidden: teacher layer 3 is asked for in words and in chunks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(objectives, message):
    with pytest.raises(UsageError, match=message):
        build(objectives, SETTING, "objectives")


@pytest.mark.parametrize("name", [name for name, term in REGISTRY.items() if issubclass(term, LayerTerm)])
def test_terms_on_layers_need_layers(name):
    nowhere = Setting((), student_size=4, teacher_size=6)
    with pytest.raises(UsageError, match=rf"^objectives\.{name}: .*`layers`"):
        build({name: {}}, nowhere, "objectives")


@pytest.mark.parametrize("teacher", [{"teacher": "cached"}, {"teacher": "live", "teacher_model": {"model": "big"}}])
def test_layers_of_a_term_are_enough(teacher):
    terms = {"dsa": {"layers": [HIGH.model_dump()]}}
    values = {"student": {"model": "small"}, "data": {"dataset": "prepared"}, "objectives": terms, **teacher}
    assert TrainConfig.parse(values, "test").objectives == terms
    nowhere = Setting((), student_size=4, teacher_size=6)
    built = build(terms, nowhere, "objectives")
    assert built["dsa"].student_layers() == (2,)


def test_a_run_needs_pairs_for_terms_on_layers_that_name_none():
    pair = {"student": 1, "teacher": 2, "granularity": "words"}
    assert not on_run_layers({"ce": {}, "srkl": {}})
    assert not on_run_layers({"ce": {}, "dsa": {"layers": [pair]}})
    assert not on_run_layers({"no-such-term": {}})
    for name in ("dsa", "hidden", "fdd"):
        assert on_run_layers({"ce": {}, name: {}})
