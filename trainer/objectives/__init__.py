"""The terms of the loss, one file each; a config names them and gives each its options.

1. A term says which teacher signals it needs (`Needs`) and which student layers it looks at.
2. For a micro-batch it gives denominators, of data alone, and numerators, with gradients, in one part or several.
3. The trainer divides by denominators added up over the whole step, so how documents are dealt out changes nothing.
4. `StateObjective`s see hidden states, `LogitObjective`s logits, a few positions at a time, `RowObjective`s those of rows of
   their own. Projectors belong to terms.
5. A new method is one file and one entry of `REGISTRY`; on layers, it derives from `LayerTerm`, too.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, Final

import torch

from schemas.columns import Granularity
from schemas.errors import UsageError, nearest
from schemas.training import DEFAULT_DATA
from trainer.objectives.base import Objective, Setting
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.divergence import (
    AdaptiveKL,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    TotalVariation,
)
from trainer.objectives.dskd import DualSpace, WeightedDualSpace
from trainer.objectives.dskd_eta import AlignedDualSpace
from trainer.objectives.fdd import FeatureDynamics
from trainer.objectives.gold import Gold
from trainer.objectives.hidden import HiddenAlignment
from trainer.objectives.layers import LayerTerm
from trainer.objectives.mined import MinimumEditDistance
from trainer.objectives.soft_dtw import SoftDtw
from trainer.objectives.spans import SpanCosine, SpanGeometry, SpanKl
from trainer.objectives.structure import StructuralAlignment
from trainer.objectives.uld import UniversalLogits

REGISTRY: Final[dict[str, type[Objective]]] = {
    "ce": CrossEntropy,
    "fkl": ForwardKL,
    "rkl": ReverseKL,
    "sfkl": SkewedForwardKL,
    "srkl": SkewedReverseKL,
    "akl": AdaptiveKL,
    "js": JensenShannon,
    "tvd": TotalVariation,
    "fdd": FeatureDynamics,
    "dsa": StructuralAlignment,
    "hidden": HiddenAlignment,
    "dskd": DualSpace,
    "dwa": WeightedDualSpace,
    "dskd_eta": AlignedDualSpace,
    "soft_dtw": SoftDtw,
    "uld": UniversalLogits,
    "gold": Gold,
    "mined": MinimumEditDistance,
    "span_cos": SpanCosine,
    "span_geometry": SpanGeometry,
    "span_kl": SpanKl,
}


def on_run_layers(objectives: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a term of a config compares the layers that are the run's, since it names none of its own."""
    kinds = ((REGISTRY.get(str(values.get("term", name))), values) for name, values in objectives.items())
    return any(kind is not None and issubclass(kind, LayerTerm) and not values.get("layers") for kind, values in kinds)


def build(
    objectives: Mapping[str, Mapping[str, Any]],
    setting: Setting,
    where: str,
    more: Mapping[str, Setting] = MappingProxyType({}),
) -> dict[str, Objective]:
    """The terms of a config, in its order; `where` names the config's key in messages.

    `setting` is that of the first dataset, `more` those of others, by name. Raises `UsageError` for an unknown term or
    option, for a term on layers that has none, and for a teacher layer that is asked for in two granularities on one dataset,
    since a batch holds the units of one.
    """
    settings = {DEFAULT_DATA: setting, **more}
    built: dict[str, Objective] = {}
    units: dict[tuple[str, int], Granularity] = {}
    for name, values in objectives.items():
        kind = _kind(name, values, where)
        options = kind.options.parse(dict(values), f"{where}.{name}")
        term = kind(options, _common([settings[data] for data in options.datasets], f"{where}.{name}"))
        if isinstance(term, LayerTerm) and not term.pairs:
            raise UsageError(
                f"{where}.{name}: no layers to align. Set `layers`, of the run or of this term: "
                "a list of `student`, `teacher`, `granularity`."
            )
        for pair, data in product(term.pairs, options.datasets):
            if units.setdefault((data, pair.teacher), pair.granularity) != pair.granularity:
                raise UsageError(
                    f"{where}.{name}: teacher layer {pair.teacher} is asked for in {units[data, pair.teacher]} and in "
                    f"{pair.granularity}; give it the same units in every term."
                )
        built[name] = term
    for name, term in built.items():
        beside = {other: each for other, each in built.items() if {*term.datasets} <= {*each.datasets}}
        term.meet(beside, f"{where}.{name}")
    return built


def _kind(name: str, values: Mapping[str, Any], where: str) -> type[Objective]:
    """What a term is. Raises `UsageError` for none that is known, or a key that does not begin with it or is another's."""
    kind = str(values.get("term", name))
    if kind not in REGISTRY:
        near, further = nearest(kind, REGISTRY), [known for known in REGISTRY if kind.startswith(f"{known}_")]
        if further:
            longest = max(further, key=len)
            hint = f"a further `{longest}` is told by `{name}: {{term: {longest}}}`."
        else:
            hint = f"did you mean `{near}`?" if near else f"known terms: {', '.join(REGISTRY)}."
        raise UsageError(f"{where}: unknown term `{kind}`; {hint}")
    if name != kind and (name in REGISTRY or not re.fullmatch(rf"{kind}_[a-z0-9_]+", name)):
        raise UsageError(
            f"{where}.{name}: the key of a further `{kind}` is {kind}_ and more lower-case letters, digits or _, as "
            f"`{kind}_again`, and no other term's."
        )
    return REGISTRY[kind]


def _common(settings: Sequence[Setting], where: str) -> Setting:
    """What a term on these datasets is built for. Raises `UsageError` where it would not be the same term on each."""
    first, *others = settings
    for other in others:
        maps = ((first.shared, other.shared), (first.nearest, other.nearest))
        same_maps = all(
            mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs))
            for mine, theirs in maps
        )
        if first.same_tokens != other.same_tokens or not same_maps:
            raise UsageError(
                f"{where}: in one of its datasets student and teacher have the same tokens and limits, in another they do not "
                "or have others in common; give each a term of its own."
            )
    return first
