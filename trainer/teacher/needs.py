"""What the terms of a loss need of the teacher, together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from schemas.columns import Granularity
from schemas.errors import UsageError
from schemas.signals import Weights
from schemas.training import PairConfig
from trainer.batches.batch import Batch
from trainer.batches.documents import Documents
from trainer.objectives.base import LayerNeed, MinedNeed, Needs, SpanNeed


@dataclass(frozen=True)
class TeacherNeeds:
    """All that batches must hold besides the student's tokens."""

    layers: Mapping[int, frozenset[LayerNeed]] = field(default_factory=dict)  # by teacher layer, lowest first
    granularities: Mapping[int, Granularity] = field(default_factory=dict)  # of those layers
    final: bool = False
    topk: bool = False
    weights: Weights = "centrality"  # of the teacher's tokens
    window: int | None = None  # of pairs of units; None: all count
    # as `trainer.objectives.base.Needs` has them
    teacher_final: bool = False
    whole_final: bool = False
    embeddings: bool = False
    argmax: bool = False
    entropy: bool = False
    logprob: bool = False
    sorted: int = 0
    likeliest: int = 0
    output_matrix: bool = False
    output_rows: bool = False
    norm: bool = False
    pairs: bool = False
    mined: MinedNeed | None = None
    spans: SpanNeed | None = None
    chunks: bool = False

    def aligned(self, batch: Batch, documents: Documents) -> Batch:
        """The batch with what its dataset says of both tokenizations, as far as terms look at it."""
        rows, mined = batch.documents.numpy(), self.mined
        same_prefix = mined is not None and mined.prefix == "exact"
        return replace(
            batch,
            pairs=documents.exact_pairs(rows) if self.pairs else None,
            mined=None if mined is None else documents.mined_pairs(rows, mined.vocabulary, same_prefix=same_prefix),
            chunks=documents.chunks(rows) if self.chunks else None,
        )

    @property
    def nothing(self) -> bool:
        """Whether no term looks at the teacher."""
        return not (self.layers or self.final or self.topk or self.teacher_tokens or self.spans)

    @property
    def head(self) -> bool:
        """Whether some term looks at the teacher's last states, or what its output matrix makes of others."""
        return self.final or self.teacher_final or self.output_matrix or self.output_rows

    @property
    def teacher_tokens(self) -> bool:
        """Whether some term looks at the teacher's own tokens."""
        return (
            self.teacher_final
            or self.whole_final
            or self.embeddings
            or self.argmax
            or self.entropy
            or self.logprob
            or self.sorted > 0
            or self.likeliest > 0
            or self.pairs
            or self.mined is not None
            or self.chunks
        )

    @property
    def logits(self) -> bool:
        """Whether its logits at its own positions can be had."""
        return self.teacher_final and self.output_matrix

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
    # a batch has the pairs of one window
    (window,) = frozenset().union(*(needs.windows for needs in terms.values())) or {None}
    return TeacherNeeds(
        layers=dict(sorted(layers.items())),
        granularities={layer: granularities[layer] for layer in sorted(layers)},
        final=any(needs.final for needs in terms.values()),
        topk=any(needs.topk for needs in terms.values()),
        weights=weights,
        window=window,
        teacher_final=any(needs.teacher_final for needs in terms.values()),
        whole_final=any(needs.whole_final for needs in terms.values()),
        embeddings=any(needs.embeddings for needs in terms.values()),
        argmax=any(needs.argmax for needs in terms.values()),
        entropy=any(needs.entropy for needs in terms.values()),
        logprob=any(needs.logprob for needs in terms.values()),
        sorted=max((needs.sorted for needs in terms.values()), default=0),
        likeliest=max((needs.likeliest for needs in terms.values()), default=0),
        output_matrix=any(needs.final or needs.output_matrix for needs in terms.values()),
        output_rows=any(needs.output_rows for needs in terms.values()),
        norm=any(needs.norm for needs in terms.values()),
        pairs=any(needs.pairs for needs in terms.values()),
        mined=next((needs.mined for needs in terms.values() if needs.mined is not None), None),
        spans=_spans({name: needs.spans for name, needs in terms.items() if needs.spans is not None}),
        chunks=any(needs.chunks for needs in terms.values()),
    )


def no_norm(teacher: str) -> UsageError:
    """What to raise where a term asks for the final norm of a teacher that has none."""
    return UsageError(
        f"`norm: true` asks for {teacher} to have a norm behind its last layer of a kind that is known; leave it out."
    )


def _spans(terms: Mapping[str, SpanNeed]) -> SpanNeed | None:
    """All layers that terms, by name, want spans of; a batch has spans of one kind."""
    if not terms:
        return None
    first, *others = terms
    for name in others:
        for option in ("weights", "most"):
            mine, theirs = getattr(terms[first], option), getattr(terms[name], option)
            if mine != theirs:
                key = {"most": "max_spans"}.get(option, option)
                raise UsageError(
                    f"`{first}` has `{key}: {mine}` and `{name}` `{key}: {theirs}`; give all terms on spans the same."
                )
    return replace(terms[first], layers=frozenset().union(*(each.layers for each in terms.values())))


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
