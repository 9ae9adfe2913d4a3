"""The terms of the loss, one file each; a config names them and gives each its options.

1. A term says which teacher signals it needs (`Needs`) and which student layers it looks at.
2. For a micro-batch it gives denominators, of data alone, and numerators, with gradients, in one part or several.
3. The trainer divides by denominators added up over the whole step, so how documents are dealt out changes nothing.
4. `StateObjective`s see hidden states, `LogitObjective`s logits, a few positions at a time, `RowObjective`s those of rows of
   their own. Projectors belong to terms.
5. A new method is one file and one entry of `REGISTRY`; on layers, it derives from `LayerTerm`, too.
"""

from collections.abc import Mapping
from typing import Any, Final

from schemas.columns import Granularity
from schemas.errors import UsageError, nearest
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
    kinds = ((REGISTRY.get(name), values) for name, values in objectives.items())
    return any(kind is not None and issubclass(kind, LayerTerm) and not values.get("layers") for kind, values in kinds)


def build(objectives: Mapping[str, Mapping[str, Any]], setting: Setting, where: str) -> dict[str, Objective]:
    """The terms of a config, in its order; `where` names the config's key in messages.

    Raises `UsageError` for an unknown term or option, for a term on layers that has none, and for a teacher layer that
    is asked for in two granularities, since a batch holds the units of one.
    """
    built: dict[str, Objective] = {}
    units: dict[int, Granularity] = {}
    for name, values in objectives.items():
        if name not in REGISTRY:
            near = nearest(name, REGISTRY)
            hint = f"did you mean `{near}`?" if near else f"known terms: {', '.join(REGISTRY)}."
            raise UsageError(f"{where}: unknown term `{name}`; {hint}")
        kind = REGISTRY[name]
        term = kind(kind.options.parse(dict(values), f"{where}.{name}"), setting)
        if isinstance(term, LayerTerm) and not term.pairs:
            raise UsageError(
                f"{where}.{name}: no layers to align. Set `layers`, of the run or of this term: "
                "a list of `student`, `teacher`, `granularity`."
            )
        for pair in term.pairs:
            if units.setdefault(pair.teacher, pair.granularity) != pair.granularity:
                raise UsageError(
                    f"{where}.{name}: teacher layer {pair.teacher} is asked for in {units[pair.teacher]} and in "
                    f"{pair.granularity}; give it the same units in every term."
                )
        built[name] = term
    for name, term in built.items():
        term.meet(built, f"{where}.{name}")
    return built
