"""The grid: what each arm learns by, as training configs; in the order in which they are run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from study.profiles import Pairs, Profile

CONFIGS: Final = Path(__file__).resolve().parents[2] / "trainer" / "configs"
PRIMARY: Final = ("srkl", "srkl-mta")
#: Granularities of an arm's layers, from the lowest: the first, those between, the last.
_UNITS: Final[Mapping[str, tuple[str, str, str]]] = {
    "words-chunks": ("words", "chunks", "chunks"),
    "words": ("words", "words", "words"),
    "chunks": ("chunks", "chunks", "chunks"),
    "phrases": ("phrases", "phrases", "phrases"),
    "words-chunks-phrases": ("words", "chunks", "phrases"),
}
_SRKL: Final = {"srkl": {"weight": 1.0, "skew": 0.1}}
_DSA: Final = {"dsa": {"weight": 2.0}}
_HIDDEN: Final = {"hidden": {"weight": 0.2}}
_FDD: Final = {"fdd": {"weight": 1.0}}
_MTA: Final = _SRKL | _DSA | _HIDDEN
#: Terms on pairs of layers.
_ON_LAYERS: Final = frozenset({"dsa", "hidden", "fdd"})


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    terms: Mapping[str, Mapping[str, Any]]
    base: str | None = None  # what it is compared with
    units: str = "words-chunks"
    extractor: str = "benepar"
    weights: str = "centrality"
    descent: bool = False  # layers paired by where they come from
    cross: bool = False  # the second pair
    live: bool = False  # the teacher in the loop
    exact: bool = (
        False  # never in TF32: in it the live teacher gives other states in a batch than alone, and is refused
    )
    longer: float = 1  # epochs, as a multiple of the profile's
    optim: Mapping[str, float] = field(default_factory=dict)  # keys of `optim` that differ

    def pairs(self, profile: Profile) -> Pairs:
        """Layers of student and teacher."""
        if self.descent and profile.descent is not None:
            return profile.descent
        return profile.cross_layers if self.cross else profile.layers

    def layers(self, profile: Profile) -> list[dict[str, Any]]:
        """`layers` of the training config; none where no term looks at them."""
        if not _ON_LAYERS & self.terms.keys():
            return []
        pairs = self.pairs(profile)
        first, between, last = _UNITS[self.units]
        granularities = [first, *[between] * (len(pairs) - 2), last]
        return [
            {"student": student, "teacher": teacher, "granularity": granularity}
            for (student, teacher), granularity in zip(pairs, granularities, strict=True)
        ]

    def seeds(self, profile: Profile) -> int:
        """How many."""
        if self.exact:
            return 1
        return profile.seeds_of_primary if self.name in PRIMARY else profile.seeds


def _published(name: str) -> dict[str, Any]:
    """The terms of a method, as its config has them."""
    terms: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["objectives"]
    return terms


def _arms() -> Iterator[Arm]:
    yield Arm("srkl", _SRKL, base="ce")
    yield Arm("srkl-mta", _MTA, base="srkl")
    yield Arm("ce", {"ce": {"weight": 1.0}})
    yield Arm("srkl-dsa", _SRKL | _DSA, base="srkl")
    yield Arm("srkl-hidden", _SRKL | _HIDDEN, base="srkl")
    for units in ("words", "chunks", "phrases", "words-chunks-phrases"):
        yield Arm(f"mta-{units}", _MTA, base="srkl-mta", units=units)
    yield Arm("mta-uniform", _MTA, base="srkl-mta", weights="uniform")
    yield Arm("mta-spacy", _MTA, base="srkl-mta", extractor="spacy")
    yield Arm("mta-descent", _MTA, base="srkl-mta", descent=True)
    yield Arm("fdd", _SRKL | _FDD, base="srkl")
    yield Arm("fdd-mta", _SRKL | _FDD | _DSA | _HIDDEN, base="fdd")
    yield Arm("live", _MTA, base="cached", live=True, exact=True)
    yield Arm("cached", _MTA, exact=True)  # what `live` is compared with
    sra = _published("sra")
    yield Arm("cross-ce", {"ce": {"weight": 1.0}}, cross=True)
    yield Arm("cross-dsa", _published("mta-dsa-cross-tokenizer"), base="cross-ce", cross=True)
    yield Arm("cross-eta", _published("dskd-eta"), base="cross-ce", cross=True)
    yield Arm("cross-sra", sra, base="cross-ce", cross=True)
    yield Arm("cross-sra-dsa", sra | _DSA, base="cross-sra", cross=True)
    yield Arm("cross-uld", _published("uld"), base="cross-ce", cross=True)
    yield Arm("cross-dwa", _published("dwa-kd"), base="cross-ce", cross=True)
    # why, if MTA does not help
    for name, factor in (("mta-light", 0.25), ("mta-heavy", 4.0)):
        terms = {"dsa": {"weight": 2.0 * factor}, "hidden": {"weight": 0.2 * factor}}
        yield Arm(name, _SRKL | terms, base="srkl")
    yield Arm("mta-projectors", _MTA, base="srkl", optim={"projector_lr": 1e-2})
    yield Arm("srkl-long", _SRKL, longer=2)
    yield Arm("mta-long", _MTA, base="srkl-long", longer=2)


ARMS: Final[Mapping[str, Arm]] = {arm.name: arm for arm in _arms()}
_WHY: Final = ("mta-light", "mta-heavy", "mta-projectors", "srkl-long", "mta-long")
FIRST: Final = ("srkl", "srkl-mta", "ce", "srkl-dsa", "srkl-hidden")
#: Arms that are run seed by seed before those behind them.
_GROUPS: Final = (
    FIRST,
    tuple(name for name in ARMS if name.startswith(("mta-", "fdd")) and name not in _WHY),
    ("live", "cached"),
    tuple(name for name, arm in ARMS.items() if arm.cross),
    _WHY,
)


def grid(profile: Profile) -> list[tuple[Arm, int]]:
    """Arms and seeds in the order of the plan."""
    order: list[tuple[Arm, int]] = []
    for group in _GROUPS:
        arms = [ARMS[name] for name in group if not (ARMS[name].descent and profile.descent is None)]
        most = max(arm.seeds(profile) for arm in arms)
        order += [(arm, seed) for seed in range(1, most + 1) for arm in arms if seed <= arm.seeds(profile)]
    return order
