"""What the terms of a loss need of the teacher, together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.columns import Granularity
from schemas.errors import UsageError
from schemas.signals import Weights
from schemas.training import PairConfig
from trainer.batches.documents import Documents
from trainer.objectives.base import LayerNeed, Needs


@dataclass(frozen=True)
class TeacherNeeds:
    """All that batches must hold besides the student's tokens."""

    layers: Mapping[int, frozenset[LayerNeed]] = field(default_factory=dict)  # by teacher layer, lowest first
    granularities: Mapping[int, Granularity] = field(default_factory=dict)  # of those layers
    final: bool = False
    topk: bool = False
    weights: Weights = "centrality"  # of the teacher's tokens

    @property
    def nothing(self) -> bool:
        """Whether no term looks at the teacher."""
        return not (self.layers or self.final or self.topk)

    @property
    def units(self) -> frozenset[Granularity]:
        """Granularities that some layer works on."""
        return frozenset(self.granularities.values())


def teacher_needs(
    terms: Mapping[str, Needs], pairs: Iterable[PairConfig], weights: Weights, documents: Documents
) -> TeacherNeeds:
    """What all terms need, given by name; `pairs`: those that they compare, a teacher layer always in the same units.

    Raises `UsageError` if a term compares token with token where the two sides of the dataset have different tokens.
    """
    token_level = {name: needs.instead for name, needs in terms.items() if needs.same_tokens}
    if token_level and not documents.same_tokens:
        raise UsageError(_different_tokens(token_level, documents))
    layers: dict[int, frozenset[LayerNeed]] = {}
    for needs in terms.values():
        for layer, kinds in needs.layers.items():
            layers[layer] = layers.get(layer, frozenset()) | kinds
    granularities = {pair.teacher: pair.granularity for pair in pairs}
    return TeacherNeeds(
        layers=dict(sorted(layers.items())),
        granularities={layer: granularities[layer] for layer in sorted(layers)},
        final=any(needs.final for needs in terms.values()),
        topk=any(needs.topk for needs in terms.values()),
        weights=weights,
    )


def _different_tokens(terms: Mapping[str, str | None], documents: Documents) -> str:
    """The sentence for terms, by name, each with what to set instead, if anything."""
    names = " and ".join(f"`{name}`" for name in terms)
    verb = "compares" if len(terms) == 1 else "compare"
    instead = " and ".join(f"set {option} in `{name}`" for name, option in terms.items() if option)
    rest = " and ".join(f"`{name}`" for name, option in terms.items() if not option)
    leave = f"leave out {rest}" if rest else ""
    return (
        f"{names} {verb} student and teacher token by token, and in {documents.folder} the two have different tokens "
        f"or limits; {' and '.join(filter(None, (instead, leave)))}, or train a student with the teacher's tokenizer: "
        f"`{documents.align_command({'student': documents.manifest.config['teacher']})}`."
    )
