"""Spans of text between common boundaries of both tokenizations, compared (SRA, arXiv 2605.01205).

Of one document: K spans k, C^S and C^T what student and teacher say of them, pooled by each model's own weights of tokens,
and ω the teacher's weights of spans, adding up to 1 (`trainer.maths.spans`). W are output matrices, O the tokens that both
vocabularies have, τ `temperature`:

    span_cos       Σ_k ω_k (1 − cos(C^S_k P, C^T_k))                             mean over the chosen layers
                   with `delta`: + Σ_k ω_k (1 − cos(ΔC^S_k, ΔC^T_k)), Δ from a chosen layer to the next, of the
                   student's behind P, ω of the lower one; mean over the steps between layers
    span_geometry  Σ_{k≠k'} ω_k ω_k' (cos(C^S_k, C^S_k') − cos(C^T_k, C^T_k'))² / max(Σ_{k≠k'} ω_k ω_k', 1e-5)
    span_kl        Σ_k KL(softmax(C^T_k W_t[O]ᵀ / τ) ‖ softmax(C^S_k W_s[O]ᵀ / τ))      `reduce: mean`: / K

each the mean over documents that have spans, long or short. The last two are of the last layer, without projectors. The
published `span_kl` is a sum over spans, so its part of the loss grows with the length of responses; with `reduce: mean`
the same weight of the term would be about K times as large.

P [d, D] has no bias and is one for each layer. Gradients go to P, the student's states and, of `span_kl`, its output matrix;
weights of tokens and spans, and all of the teacher, are constants. What either model does to its logits, its bias, scale
and soft cap, is done here too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, field_validator
from torch import Tensor, nn

from schemas.errors import UsageError
from schemas.training import LayerPair
from trainer.batches.batch import Batch, SpanTargets
from trainer.maths.divergence import forward_kl
from trainer.maths.geometry import relations
from trainer.maths.ragged import at_least_float32, spread, sum_rows
from trainer.maths.triangle import later_units, pair_rows, unit_pairs
from trainer.objectives.base import (
    Beginning,
    Needs,
    Objective,
    Options,
    RowObjective,
    Setting,
    SpanNeed,
    StateObjective,
)
from trainer.objectives.cross_space import Divergences, SharedTokens, shared_ids
from trainer.objectives.hidden import misalignment
from trainer.objectives.position_spans import PositionSpans
from trainer.objectives.span_positions import MOST_TOGETHER, AmongPositions, SpansOfPositions

#: What the weights of a document's pairs of spans count as at least.
PAIR_EPSILON: Final = 1e-5


class SpanOptions(Options):
    """Options of every term on spans; a batch has spans of one kind, so all terms must have the same of these."""

    weights: Literal["attention", "uniform"] = "attention"  # of tokens: what the last query pays them, or all alike
    max_spans: int = Field(default=1024, ge=1)  # of a document


class SpanCosineOptions(SpanOptions):
    """Options of `span_cos`."""

    layers: tuple[LayerPair, ...] | None = Field(default=None, min_length=1)  # None: the last ones
    delta: bool = False  # also how each layer changes to the next of `layers`


class SpanGeometryOptions(SpanOptions):
    """Options of `span_geometry`."""

    @field_validator("max_spans")
    @classmethod
    def _pairs(cls, most: int) -> int:
        if most < 2:
            raise ValueError(
                "`span_geometry` compares how spans of a document relate to each other, so at least 2 of them are wanted; "
                "leave the term out, or set `max_spans` of all terms on spans"
            )
        return most


class SpanKlOptions(SpanOptions):
    """Options of `span_kl`."""

    temperature: float = Field(default=2.0, gt=0)
    reduce: Literal["sum", "mean"] = "sum"  # over a document's spans


class SpanTerm(Objective):
    """A term on spans, to be derived from beside `StateObjective` or `RowObjective`."""

    options: ClassVar[type[Options]] = SpanOptions

    def __init__(self, options: SpanOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        last = (setting.student_last, setting.teacher_last)
        self.layers: tuple[LayerPair, ...] = ()  # none: nobody knows how deep the teacher is
        if last[0] is not None and last[1] is not None:
            self.layers = (LayerPair(student=last[0][0], teacher=last[1][0]),)

    def meet(self, terms: Mapping[str, Objective], where: str) -> None:
        """Raises UsageError for layers that the models do not have, or that have no attention."""
        if not self.layers:
            raise UsageError(
                f"{where}: the teacher's last layer is not known without a teacher. Name a cache in `data.caches` (`mta-prep "
                "cache-teacher DATASET --teacher MODEL --recipe sra --out CACHE` makes it), or set `teacher: live`."
            )
        for side, last in (("student", self.setting.student_last), ("teacher", self.setting.teacher_last)):
            for layer in (getattr(pair, side) for pair in self.layers):
                if last is not None and layer > last[0]:
                    raise UsageError(f"{where}: the {side} has layers 0 (embeddings) to {last[0]}, not {layer}.")
                if layer == 0 and self.config.weights == "attention":
                    raise UsageError(
                        f"{where}: layer 0 is the embeddings, which attend to nothing; choose another layer of the {side}, "
                        "or set `weights: uniform`."
                    )

    def needs(self) -> Needs:
        """Pooled spans of its layers."""
        teachers = frozenset(pair.teacher for pair in self.layers)
        return Needs(spans=SpanNeed(teachers, self.config.weights, self.config.max_spans))

    def student_layers(self) -> tuple[int, ...]:
        """Those that it pools."""
        return tuple(sorted({pair.student for pair in self.layers}))

    def attention_layers(self) -> tuple[int, ...]:
        """The same, where attention weighs."""
        return self.student_layers() if self.config.weights == "attention" else ()

    def denominators(self, batch: Batch) -> Float[Tensor, " one"]:
        """The number of documents that have spans."""
        return torch.tensor([int((_targets(batch).rows.diff() > 0).sum())], dtype=torch.float64)

    def pooled(
        self, states: Mapping[int, Tensor], batch: Batch, layer: int, index: Int64[Tensor, " some"] | None = None
    ) -> Float[Tensor, "some hidden"]:
        """C^S of a student layer, of some spans; None: of all."""
        learnt, hidden = _targets(batch).student, states[layer]
        weights = learnt.weights(self._attention(batch, layer, hidden.device), hidden.device)
        some = learnt if index is None else replace(learnt, spans=learnt.spans[index])
        return some.pool(hidden.index_select(0, learnt.tokens.to(hidden.device, non_blocking=True)), weights)

    def _attention(self, batch: Batch, layer: int, device: torch.device) -> Float[Tensor, " learnt_tokens"] | None:
        """To each learnt token, where it weighs."""
        if self.config.weights == "uniform":
            return None
        return batch.attention[layer][_targets(batch).student.tokens.to(device, non_blocking=True)]


class SpanCosine(SpanTerm, StateObjective):
    """Spans point as the teacher's, through projectors, which are in `projectors`, in the order of the layers."""

    options: ClassVar[type[Options]] = SpanCosineOptions

    def __init__(self, options: SpanCosineOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        if options.layers is not None:
            self.layers = options.layers
        projectors = [nn.Linear(*setting.sizes(pair), bias=False) for pair in self.layers]
        for projector in projectors:
            nn.init.xavier_uniform_(projector.weight)
        self.projectors = nn.ModuleList(projectors)

    def meet(self, terms: Mapping[str, Objective], where: str) -> None:
        """Raises UsageError also for layers between which nothing can change."""
        super().meet(terms, where)
        if not self.config.delta:
            return
        if len(self.layers) < 2:
            raise UsageError(f"{where}: `delta` is of the change between layers; set at least two in `layers`.")
        if len({self.setting.sizes(pair)[1] for pair in self.layers}) > 1:
            raise UsageError(
                f"{where}: the teacher's hidden states do not have as many features in all of `layers`, so they have no "
                "difference; leave out its last layer, or `delta`."
            )

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """The number of documents that have spans, for each part."""
        return super().denominators(batch).expand(len(self.layers) + self._changes)

    @property
    def _changes(self) -> int:
        """Steps from layer to layer that are looked at."""
        return len(self.layers) - 1 if self.config.delta else 0

    def forward(self, states: Mapping[int, Float[Tensor, "tokens _"]], batch: Batch) -> Float[Tensor, " parts"]:
        """Numerators: a layer each, then a change each."""
        projected = []
        for pair, projector in zip(self.layers, self.projectors, strict=True):
            spans = self.pooled(states, batch, pair.student)
            # called also for nothing at all: ZeRO expects a gradient of every parameter
            projected.append(projector(spans.to(next(projector.parameters()).dtype)))
        theirs = [_targets(batch).layers[pair.teacher] for pair in self.layers]
        parts = [misalignment(mine, of.vectors, of.weights) for mine, of in zip(projected, theirs, strict=True)]
        for low in range(self._changes):
            mine = at_least_float32(projected[low + 1]) - projected[low]
            change = theirs[low + 1].vectors - theirs[low].vectors
            parts.append(misalignment(mine, change, theirs[low].weights))
        return torch.stack(parts)

    def combined(self, parts: Float[Tensor, " parts"]) -> Float[Tensor, ""]:
        """The mean over layers and, with `delta`, that over changes."""
        mean = parts[: len(self.layers)].mean()
        return mean + parts[len(self.layers) :].mean() if self._changes else mean


class SpanGeometry(SpanTerm, StateObjective):
    """Spans relate to each other as they do in the teacher. A document of one span adds 0."""

    options: ClassVar[type[Options]] = SpanGeometryOptions

    def forward(self, states: Mapping[int, Float[Tensor, "tokens _"]], batch: Batch) -> Float[Tensor, " one"]:
        """The sum over documents."""
        (pair,) = self.layers
        rows, theirs = _targets(batch).rows, _targets(batch).layers[pair.teacher]
        spans = self.pooled(states, batch, pair.student)
        difference = relations(spans, rows) - relations(theirs.vectors, rows)
        left, right = unit_pairs(later_units(rows), spans.device)
        both = theirs.weights[left] * theirs.weights[right]
        pairs = pair_rows(rows)
        # of every pair twice, as k and k' and the other way round
        total = (2 * sum_rows(both, pairs)).clamp_min(PAIR_EPSILON)
        return (2 * sum_rows(both * difference.square(), pairs) / total).sum()[None]


class SpanKl(SpanTerm, RowObjective):
    """Spans predict, over the tokens that both vocabularies have, what they do in the teacher."""

    options: ClassVar[type[Options]] = SpanKlOptions

    def needs(self) -> Needs:
        """Also rows of the teacher's output matrix, and which tokens both vocabularies have."""
        return replace(super().needs(), output_rows=True, shared=not self.setting.same_tokens)

    def begin(self, beginning: Beginning) -> None:
        """Raises UsageError where the vocabularies do not share two tokens: over one, all distributions are the same."""
        assert beginning.teacher_head is not None
        ids = shared_ids(self.setting, len(beginning.student_head.weight), len(beginning.teacher_head.weight))
        if len(ids) < 2:
            count = "1 token" if len(ids) else "no token"
            raise UsageError(
                f"`span_kl`: the two vocabularies have {count} in common, and so no distributions to compare; leave it out."
            )
        self._tokens = SharedTokens(ids)
        self._capped = beginning.student_head.soft_cap is not None

    def work(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float) -> Divergences:
        """The divergence of every span."""
        every = torch.arange(len(_targets(batch).student.spans))
        return self._of_own_rows(every, states, batch, factor)

    def work_beside(
        self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float
    ) -> tuple[SpansOfPositions, Divergences]:
        """Of spans of the batch's positions by the logits there, which other terms have; of the others by their own."""
        (pair,) = self.layers
        learnt, device = _targets(batch).student, states[pair.student].device
        here = AmongPositions.of(learnt, batch.rows, 1 if self._capped else MOST_TOGETHER)
        weights = learnt.weights(self._attention(batch, pair.student, device), device)
        shared = self._tokens.rows(self.matrices)
        vectors, span_weights = self._compared(here.index, batch, device)
        riding = SpansOfPositions(
            spans=PositionSpans(here.spans),
            token_weights=here.at_positions(weights, len(batch.positions)),
            head=shared.teacher,
            vectors=vectors,
            columns=shared.columns,
            weights=span_weights,
            temperature=self.config.temperature,
            factor=factor,
        )
        return riding, self._of_own_rows(here.others, states, batch, factor)

    def _of_own_rows(
        self, index: Int64[Tensor, " some"], states: Mapping[int, Tensor], batch: Batch, factor: float
    ) -> Divergences:
        """The divergence of some spans."""
        (pair,) = self.layers
        rows = self.pooled(states, batch, pair.student, index)
        vectors, weights = self._compared(index, batch, rows.device)
        shared = self._tokens.rows(self.matrices)
        return Divergences(
            shared.teacher,
            vectors,
            rows,
            weights,
            self.config.temperature,
            forward_kl,
            own=True,
            bias=True,
            columns=shared.columns,
            factor=factor,
        )

    def _compared(
        self, index: Int64[Tensor, " some"], batch: Batch, device: torch.device
    ) -> tuple[Float[Tensor, "some teacher_hidden"], Float[Tensor, " some"] | None]:
        """Of some spans C^T, and what each counts if not 1."""
        (pair,) = self.layers
        targets = _targets(batch)
        index = index.to(device, non_blocking=True)
        vectors = targets.layers[pair.teacher].vectors.index_select(0, index)
        if self.config.reduce == "sum":
            return vectors, None
        counts = targets.rows.diff().to(device, at_least_float32(vectors).dtype)
        return vectors, spread(1 / counts, targets.rows).index_select(0, index)


def _targets(batch: Batch) -> SpanTargets:
    assert batch.spans is not None
    return batch.spans
