"""The teacher's side of batches from the teacher itself, run on every micro-batch: what a cache is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from schemas.config import CacheConfig, ModelConfig
from schemas.signals import SCALARS, Signal
from trainer.batches.batch import Batch, LayerTargets, SpanTargets, TeacherTokens
from trainer.batches.documents import Documents
from trainer.batches.lists import Rows
from trainer.maths.layer_signals import layer_signals
from trainer.models.embeddings import Embeddings
from trainer.models.head import Head
from trainer.models.hidden_states import Captured, Forward, Request
from trainer.models.loading import LanguageModel, load_model
from trainer.objectives.base import LayerNeed, SpanNeed
from trainer.teacher.needs import TeacherNeeds, no_norm
from trainer.teacher.targets import join_layer, learnt_spans, span_layer


class LiveTeacher:
    """Gives the batches that `trainer.teacher.cached.CachedTeacher` gives, with the teacher in memory."""

    #: Whether other processes may fetch.
    portable: ClassVar[bool] = False

    def __init__(
        self,
        config: ModelConfig,
        documents: Documents,
        demand: TeacherNeeds,
        topk: int = CacheConfig.model_fields["topk"].default,
        teacher: LanguageModel | None = None,
    ) -> None:
        """Loads the teacher, as deep as is demanded, unless it is given. `topk`: tokens of each distribution, if those are.

        Raises `UserError` and its kin if it cannot be loaded, or takes no row as long as the longest, or has no such layer.
        """
        self.documents = documents
        self.rows = documents.rows
        self._demand = demand
        self._topk = topk if demand.topk else 0
        request = _request(demand, self._topk)
        teacher = teacher or load_model(config, request.deepest)
        longest = int(documents.lengths("teacher").max(initial=0))
        teacher.require_room(longest, documents.folder, config.model)
        self._forward = Forward(teacher, request, longest)
        self._norm = teacher.norm() if demand.norm else None
        if demand.norm and self._norm is None:
            raise no_norm(f"the teacher {config.model!r} ({teacher.architecture})")

    @property
    def head(self) -> Head:
        """What turns `final` and `position_states` into logits. Raises `UserError` for a model whose logits are not known."""
        return replace(self._forward.head or self._forward.teacher.head(), norm=self._norm)

    @property
    def embeddings(self) -> Embeddings:
        """The teacher's input embeddings. Raises `UserError` for a model that has no plain matrix of them."""
        return self._forward.teacher.embeddings()

    @torch.no_grad()
    def fetch(self, rows: Sequence[int]) -> Batch:
        """Some rows: the student's side on the CPU, the teacher's values where the teacher is."""
        chosen = np.asarray(rows, dtype=np.int64)
        batch = self.documents.batch(chosen)
        ids, token_rows = self.documents.tokens("teacher", chosen)
        if self._demand.nothing:
            return batch
        captured = self._forward(np.split(ids, token_rows[1:-1].numpy()))
        layers = {layer: self._layer(captured, layer, needs, batch) for layer, needs in self._demand.layers.items()}
        final = indices = logprobs = teacher = None
        if self._demand.final and captured.final is not None:
            final = _at(captured.final, batch.positions)
        if captured.topk is not None and self._topk:
            indices, logprobs = (_at(values[:, : self._topk], batch.positions) for values in captured.topk)
            indices = indices.to(torch.int64)
        if self._demand.teacher_tokens:
            teacher = self._teacher_tokens(captured, chosen)
        return replace(
            self._demand.aligned(batch, self.documents),
            layers=layers,
            final=final,
            topk_indices=indices,
            topk_logprobs=logprobs,
            teacher=teacher,
            spans=None if self._demand.spans is None else self._spans(self._demand.spans, captured, chosen, batch.rows),
        )

    def _spans(
        self, need: SpanNeed, captured: Captured, rows: Rows, student_rows: Int64[Tensor, " pointers"]
    ) -> SpanTargets:
        """Spans that end in both tokenizations, pooled in the teacher's states; `student_rows`: the student's tokens."""
        shared = self.documents.common_spans(rows, need.most)
        learnt = learnt_spans(captured.rows, *self.documents.responses("teacher", rows), shared.teacher)
        student = learnt_spans(student_rows, *self.documents.responses("student", rows), shared.student)
        layers = {}
        for layer in sorted(need.layers):
            attention = captured.attention.get(layer)
            paid = None if attention is None else _at(attention, learnt.tokens)
            layers[layer] = span_layer(_at(captured.states[layer], learnt.tokens), paid, learnt, shared.rows)
        return SpanTargets(student, shared.rows, layers)

    def _teacher_tokens(self, captured: Captured, rows: Rows) -> TeacherTokens:
        """The teacher's own tokens, and what is demanded at those before a learnt one."""
        tokens = self.documents.teacher_tokens(rows)
        final = captured.final
        argmax, entropy, logprob = (captured.scalars.get(name) for name in ("argmax", "entropy", "logprob"))
        likeliest = logprobs = None
        if captured.topk is not None and self._demand.likeliest:
            likeliest, logprobs = (
                _at(values[:, : self._demand.likeliest], tokens.positions) for values in captured.topk
            )
        return replace(
            tokens,
            final=_at(final, tokens.positions) if self._demand.teacher_final and final is not None else None,
            whole_final=final if self._demand.whole_final else None,
            argmax=None if argmax is None else _at(argmax, tokens.positions).to("cpu", torch.int64),
            entropy=None if entropy is None else _at(entropy, tokens.positions),
            logprob=None if logprob is None else _at(logprob, tokens.positions),
            sorted=None if captured.sorted is None else _at(captured.sorted, tokens.positions),
            likeliest=None if likeliest is None else likeliest.to("cpu", torch.int64),
            likeliest_logprobs=logprobs,
        )

    def _layer(self, captured: Captured, layer: int, needs: frozenset[LayerNeed], batch: Batch) -> LayerTargets:
        granularity = self._demand.granularities[layer]
        units = self.documents.teacher_units(granularity, batch, captured.rows)
        want: set[Signal] = {"states" if need == "position_states" else need for need in needs}
        weights = self._demand.weights
        window = self._demand.window
        signals = layer_signals(
            captured.states[layer], captured.rows, units.spans, units.rows, want, "all", weights, window=window
        )
        shared = self.documents.units(granularity, batch)
        return join_layer(signals, shared, needs, len(batch.ids), batch.positions, window)


def live_teachers(
    config: ModelConfig, datasets: Mapping[str, tuple[Documents, TeacherNeeds]]
) -> dict[str, LiveTeacher]:
    """One teacher, loaded once, for each of some datasets and what is demanded of it there. Raises as `LiveTeacher`."""
    depths = [_request(demand, int(demand.topk)).deepest for _, demand in datasets.values()]
    known = [depth for depth in depths if depth is not None]
    teacher = load_model(config, None if len(known) < len(depths) else max(known))
    return {
        name: LiveTeacher(config, documents, demand, teacher=teacher) for name, (documents, demand) in datasets.items()
    }


def _request(demand: TeacherNeeds, topk: int) -> Request:
    """What is asked of the teacher; `topk`: tokens of each distribution, 0 for none."""
    of_spans = () if demand.spans is None else tuple(sorted(demand.spans.layers))
    return Request(
        layers=tuple(sorted({*demand.layers, *of_spans})),
        attention=of_spans if demand.spans is not None and demand.spans.weights == "attention" else (),
        final=demand.head or demand.whole_final,
        topk=max(topk, demand.likeliest) or None,
        sorted=demand.sorted or None,
        scalars=tuple(name for name in SCALARS if getattr(demand, name)),
    )


def _at(values: Tensor, positions: Int64[Tensor, " positions"]) -> Tensor:
    """Those at some tokens."""
    return values[positions.to(values.device, non_blocking=True)]
