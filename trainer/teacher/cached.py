"""The teacher's side of batches from caches: one, or several of the same teacher and dataset, made on different days."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Final, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from schemas import commands
from schemas.columns import Granularity, Side
from schemas.config import CacheConfig, LayerConfig, ModelConfig
from schemas.errors import UsageError
from schemas.signals import WINDOW, Scalar, Signal
from trainer.batches.batch import Batch, LayerTargets, SpanTargets, TeacherTokens
from trainer.batches.lists import Rows
from trainer.batches.units import SharedUnits, before_tokens
from trainer.cache import EVERYTHING, TeacherCache
from trainer.maths.layer_signals import LayerSignals
from trainer.maths.ragged import pointers, spread
from trainer.maths.triangle import later_units, within
from trainer.models.embeddings import Embeddings
from trainer.models.head import Head
from trainer.objectives.base import LayerNeed, SpanNeed
from trainer.teacher.caches import Caches
from trainer.teacher.needs import TeacherNeeds, no_norm
from trainer.teacher.targets import MissingState, join_layer, learnt_spans, span_layer

#: What a layer's need is in a cache.
_SIGNALS: Final[Mapping[str, Signal]] = {
    "relations": "relations",
    "units": "units",
    "states": "states",
    "position_states": "states",
    "span_states": "states",
    "whole_final": "final",
    "norm": "final",
}
#: Needs of tokens, which one cache serves together.
_OF_TOKENS: Final = frozenset({"states", "position_states"})
#: Needs of what is learnt alone.
_OF_LEARNT: Final = ("final", "topk", "argmax", "entropy", "logprob", "sorted", "position_states", "span_states")
#: Needs of spans, which are of no granularity: states of learnt tokens, and the last query's attention.
_SPAN_NEEDS: Final = frozenset({"span_states", "attention"})
#: Of units; every layer has them, whatever its signals.
_WEIGHTS: Final = "weights"


def signals_of(needs: Iterable[LayerNeed]) -> frozenset[Signal]:
    """What a cache must have of a layer."""
    return frozenset(_SIGNALS[need] for need in needs)


class CachedTeacher:
    """Gives batches with everything that is demanded of the teacher, without running it. May be forked and pickled."""

    #: Whether other processes may fetch.
    portable: ClassVar[bool] = True

    def __init__(self, caches: Caches, demand: TeacherNeeds) -> None:
        """Raises `UsageError`, with the command that makes what is missing, if the caches do not hold what is demanded."""
        self.documents = caches.documents
        self.rows = caches.rows
        self._caches = caches
        self._demand = demand
        self._require_weights()
        wanted: list[tuple[int | None, str]] = [
            (layer, need) for layer, needs in demand.layers.items() for need in (_WEIGHTS, *sorted(needs))
        ]
        wanted += [(None, name) for name in _once_a_document(demand)]
        wanted += _of_spans(demand)
        found = {each: cache for each in wanted if (cache := self._first(*each)) is not None}
        if len(found) < len(wanted):
            raise UsageError(self._lacking([each for each in wanted if each not in found]))
        if demand.logprob and (cache := self._first(None, "logprob")) is not None:
            found[None, "logprob"] = cache
        self._serving: dict[tuple[int | None, str], TeacherCache] = found

    @property
    def head(self) -> Head:
        """What turns `final` and `position_states` into logits, memory-mapped. Raises `UsageError` if no cache has it."""
        for cache in self._caches.caches:
            if "final" in cache.config.signals and (cache.knows_norm or not self._demand.norm):
                return cache.head
        raise UsageError(
            "Logits need the teacher's output matrix, which caches with the signal `final` hold, and none of "
            f"`{self._caches.key}.caches` does; for one: `{self._command([(None, 'final')])}`."
        )

    @property
    def embeddings(self) -> Embeddings:
        """The teacher's input embeddings of the dataset's tokens, memory-mapped. Raises `UsageError` if no cache has them."""
        cache = self._first(None, "embeddings")
        if cache is None:
            raise UsageError(self._lacking([(None, "embeddings")]))
        return cache.embeddings

    def fetch(self, rows: Sequence[int]) -> Batch:
        """Some rows, everything on the CPU."""
        chosen = np.asarray(rows, dtype=np.int64)
        if len(chosen) and chosen.max() >= self.rows:
            raise ValueError(f"row {chosen.max()} of caches with rows 0 to {self.rows - 1}")
        batch = self.documents.batch(chosen)
        units = {each: self.documents.units(each, batch) for each in sorted(self._demand.units)}
        layers = {
            layer: self._layer(layer, needs, batch, units[self._demand.granularities[layer]])
            for layer, needs in self._demand.layers.items()
        }
        final = indices = logprobs = teacher = None
        if self._demand.final:
            final = self._final("student", chosen, len(batch.positions))
        if self._demand.topk:
            indices, logprobs = self._topk("student", chosen, len(batch.positions))
        if self._demand.teacher_tokens:
            teacher = self._teacher_tokens(chosen)
        return replace(
            self._demand.aligned(batch, self.documents),
            layers=layers,
            final=final,
            topk_indices=indices,
            topk_logprobs=logprobs,
            teacher=teacher,
            spans=None if self._demand.spans is None else self._spans(self._demand.spans, chosen, batch.rows),
        )

    def _spans(self, need: SpanNeed, rows: Rows, student_rows: Int64[Tensor, " pointers"]) -> SpanTargets:
        """Spans that end in both tokenizations, pooled in the teacher's states; `student_rows`: the student's tokens."""
        shared = self.documents.common_spans(rows, need.most)
        responses, response_rows = self.documents.responses("teacher", rows)
        token_rows = pointers(self.documents.lengths("teacher")[rows].tolist())
        learnt = learnt_spans(token_rows, responses, response_rows, shared.teacher)
        of_rows = [responses[first:last].to(torch.int64) for first, last in pairwise(response_rows.tolist())]
        layers = {}
        for layer in sorted(need.layers):
            cache = self._serving[layer, "span_states"]
            states = torch.cat(
                [
                    cache.vectors(row, "states", layer, part)
                    for row, mine in zip(rows.tolist(), of_rows, strict=True)
                    for part in cache.parts_of(row, mine)
                ]
            )
            _require_as_many(cache, len(states), len(learnt.tokens), f"states of layer {layer}")
            attention = self._attention(layer, rows, token_rows) if need.weights == "attention" else None
            paid = None if attention is None else attention[learnt.tokens]
            layers[layer] = span_layer(states, paid, learnt, shared.rows)
        student = learnt_spans(student_rows, *self.documents.responses("student", rows), shared.student)
        return SpanTargets(student, shared.rows, layers)

    def _attention(self, layer: int, rows: Rows, token_rows: Int64[Tensor, " pointers"]) -> Float[Tensor, " tokens"]:
        """What the last query of a layer pays each of the teacher's tokens."""
        cache = self._serving[layer, "attention"]
        attention = torch.cat([cache.attention(row, layer) for row in rows.tolist()])
        _require_as_many(cache, len(attention), int(token_rows[-1]), f"weights of attention of layer {layer}")
        return attention

    def _teacher_tokens(self, rows: Rows) -> TeacherTokens:
        """The teacher's own tokens, and what is demanded at those before a learnt one, whatever tokens the student has."""
        tokens = self.documents.teacher_tokens(rows)
        positions = len(tokens.positions)
        likeliest = logprobs = None
        if self._demand.likeliest:
            most = slice(self._demand.likeliest)
            likeliest, logprobs = (values[:, most] for values in self._topk("teacher", rows, positions))
        return replace(
            tokens,
            final=self._final("teacher", rows, positions) if self._demand.teacher_final else None,
            whole_final=self._whole_final(rows, len(tokens.ids)) if self._demand.whole_final else None,
            argmax=self._scalars("argmax", rows, positions) if self._demand.argmax else None,
            entropy=self._scalars("entropy", rows, positions) if self._demand.entropy else None,
            logprob=self._scalars("logprob", rows, positions) if (None, "logprob") in self._serving else None,
            sorted=self._sorted(rows, positions) if self._demand.sorted else None,
            likeliest=likeliest,
            likeliest_logprobs=logprobs,
        )

    def _topk(
        self, side: Side, rows: Rows, positions: int
    ) -> tuple[Int64[Tensor, "positions k"], Float[Tensor, "positions k"]]:
        """The teacher's likeliest next tokens before each learnt token of a side, and their log-probabilities."""
        cache = self._serving[None, "topk"]
        distributions = [cache.topk(row, part) for row, part in self._learnt(side, rows, cache)[0]]
        indices, logprobs = (torch.cat(parts) for parts in zip(*distributions, strict=True))
        _require_as_many(cache, len(indices), positions, "distributions")
        return indices, logprobs

    def _sorted(self, rows: Rows, positions: int) -> Float[Tensor, "positions most"]:
        """Probabilities of the teacher's likeliest next tokens, before each of its learnt ones."""
        cache, most = self._serving[None, "sorted"], slice(self._demand.sorted)
        parts = self._learnt("teacher", rows, cache)[0]
        if "sorted" in cache.config.signals:
            falling = torch.cat([cache.sorted(row, part)[:, most] for row, part in parts])
        else:
            falling = torch.cat([cache.topk(row, part)[1][:, most].exp() for row, part in parts])
        _require_as_many(cache, len(falling), positions, "sorted distributions")
        return falling

    def _final(self, side: Side, rows: Rows, positions: int) -> Float[Tensor, "positions hidden"]:
        """The teacher's last states before each learnt token of a side."""
        cache = self._serving[None, "final"]
        final = torch.cat([cache.vectors(row, "final", part=part) for row, part in self._learnt(side, rows, cache)[0]])
        _require_as_many(cache, len(final), positions, "last states")
        return final

    def _whole_final(self, rows: Rows, tokens: int) -> Float[Tensor, "tokens hidden"]:
        """The teacher's last states at all of its tokens."""
        cache = self._serving[None, "whole_final"]
        final = torch.cat([cache.vectors(row, "final") for row in rows.tolist()])
        _require_as_many(cache, len(final), tokens, "last states")
        return final

    def _scalars(self, name: Scalar, rows: Rows, positions: int) -> Shaped[Tensor, " positions"]:
        """What is told in one number of the teacher's next token, before each of its learnt ones."""
        cache = self._serving[None, name]
        values: dict[int, Tensor] = {row: getattr(cache, name)(row) for row in set(rows.tolist())}
        scalars = torch.cat([values[row][part] for row, part in self._learnt("teacher", rows, cache)[0]])
        _require_as_many(cache, len(scalars), positions, f"values of `{name}`")
        return scalars

    def _layer(self, layer: int, needs: frozenset[LayerNeed], batch: Batch, units: SharedUnits) -> LayerTargets:
        rows: list[int] = batch.documents.tolist()
        serving = {need: self._serving[layer, need] for need in (_WEIGHTS, *needs)}
        for cache in dict.fromkeys(serving.values()):
            for row, count in zip(rows, units.teacher_rows.diff().tolist(), strict=True):
                _require_as_many(
                    cache, len(cache.unit_index(row, layer)), count, f"units of layer {layer} in row {row}"
                )
        signals = LayerSignals(torch.cat([serving[_WEIGHTS].unit_weights(row, layer) for row in rows]))
        if "relations" in needs:
            cache = serving["relations"]
            later = later_units(units.teacher_rows, cache.config.window)
            signals = replace(signals, relations=cache.triangles(rows, layer), later=later)
        if "units" in needs:
            vectors = [serving["units"].vectors(row, "units", layer) for row in rows]
            signals = replace(signals, units=torch.cat(vectors))
        if needs & {"states", "position_states"}:
            signals = self._with_states(signals, layer, needs, batch)
        try:
            return join_layer(signals, units, needs, len(batch.ids), batch.positions, self._demand.window)
        except MissingState as error:
            cache = serving["position_states" if "position_states" in needs else "states"]
            raise cache.damaged(f"of layer {layer}, {error}") from None

    def _with_states(
        self, signals: LayerSignals, layer: int, needs: frozenset[LayerNeed], batch: Batch
    ) -> LayerSignals:
        rows: list[int] = batch.documents.tolist()
        cache = self._serving[layer, "position_states" if "position_states" in needs else "states"]
        index: Int64[Tensor, " states"] | None
        if "states" not in needs:  # only before what is learnt
            parts, state_rows = self._learnt("student", batch.documents.numpy(), cache)
            index = batch.positions
        else:
            parts, state_rows, index = [(row, EVERYTHING) for row in rows], batch.rows, None
            if cache.config.state_tokens == "covered":
                places = [cache.state_index(row, layer) for row in rows]
                state_rows = pointers([len(of_row) for of_row in places])
                index = torch.cat(places) + spread(batch.rows[:-1], state_rows)
        states = torch.cat([cache.vectors(row, "states", layer, part) for row, part in parts])
        _require_as_many(cache, len(states), int(state_rows[-1]), f"states of layer {layer}")
        return replace(
            signals,
            states=states,
            token_weights=torch.cat([cache.token_weights(row, layer)[part] for row, part in parts]),
            state_rows=state_rows,
            state_index=index,
        )

    def _learnt(
        self, side: Side, rows: Rows, cache: TeacherCache
    ) -> tuple[list[tuple[int, slice]], Int64[Tensor, " pointers"]]:
        """Where a cache keeps what it has of the tokens before each of a side's learnt ones: rows, and parts of what is kept
        of their tokens; and row pointers of those positions. Of the student's only where both have the same tokens."""
        spans, span_rows = self.documents.responses(side, rows)
        before = before_tokens(spans)
        parts = [
            (row, part)
            for row, (first, last) in zip(rows.tolist(), pairwise(span_rows.tolist()), strict=True)
            for part in cache.parts_of(row, before[first:last])
        ]
        return parts, pointers(before.diff(dim=1).squeeze(1))[span_rows]

    def _require_weights(self) -> None:
        wanted = self._demand.weights
        for cache in self._caches.caches:
            if self._demand.layers and cache.layers and cache.config.weights != wanted:
                raise UsageError(
                    f"{cache.folder} was made with `weights: {cache.config.weights}`, and this config says "
                    f"`weights: {wanted}`; change it, or make another cache: `{cache.command(weights=wanted)}`."
                )

    def _first(self, layer: int | None, need: str) -> TeacherCache | None:
        """The first cache that has it."""
        for cache in self._caches.caches:
            if need in _SPAN_NEEDS:
                has = layer in cache.layers
            else:
                has = layer is None or cache.layers.get(layer) == self._demand.granularities[layer]
            if need == "sorted":  # which the likeliest tokens' log-probabilities are, too
                has = has and cache.most_sorted >= min(self._demand.sorted, cache.manifest.teacher["vocabulary"])
            elif need != _WEIGHTS:
                has = has and _SIGNALS.get(need, need) in cache.config.signals
            if need == "whole_final":
                has = has and not cache.config.response_only
            if need == "norm":
                has = has and cache.knows_norm
            if need == "topk":
                has = has and cache.config.topk >= self._demand.likeliest
            if need == "relations":
                has = has and within(self._demand.window, cache.config.window)
            if need in ("position_states", "span_states"):
                has = has and cache.config.state_tokens == "all"
            if layer is not None and need in _OF_TOKENS and "states" in self._demand.layers[layer]:
                has = has and not cache.config.response_only
            if has:
                return cache
        return None

    def _lacking(self, missing: Sequence[tuple[int | None, str]]) -> str:
        layer, need = missing[0]
        if need == "norm":
            return self._lacking_norm()
        remedy = "make one, and name it there as well"
        named = f"`{self._caches.key}.caches`"
        none_has = f"No cache in {named} has"
        if layer is None:
            what = f"{none_has} the signal `{_SIGNALS.get(need, need)}`"
            if need == "whole_final":
                what += " of tokens outside of responses (`response_only: false`)"
            if need == "topk" and self._demand.likeliest:
                what += f" of {self._demand.likeliest} tokens"
            if need == "sorted":
                what += f" of {self._demand.sorted} probabilities"
        elif need in _SPAN_NEEDS:
            signal = {"span_states": "states of all learnt tokens", "attention": "signal `attention`"}[need]
            what = f"{none_has} the {signal} (recipe sra) of teacher layer {layer}"
        else:
            wanted = self._demand.granularities[layer]
            others = {cache.layers[layer]: cache for cache in self._caches.caches if layer in cache.layers}
            if not others:
                what = f"{none_has} teacher layer {layer}"
            elif wanted not in others:
                found, cache = next(iter(others.items()))
                what = f"{cache.folder} has {found} at teacher layer {layer}, which the config pairs for {wanted}"
            elif need == "relations" and (narrow := self._with_relations(layer)) is not None:
                window = narrow.config.window
                what = (
                    f"{narrow.folder} has, of long documents, relations of units less than {window} apart (`window: {window}`), "
                    f"and this config asks for more (`objectives.dsa.window: {json.dumps(self._demand.window)}`)"
                )
                remedy = f"say `window: {window}` there, or less, or make a wider cache and name it in {named}"
            elif need in _OF_TOKENS and self._ends_at_responses(layer):
                what = (
                    f"{none_has} the states of tokens outside of responses (`response_only: false`) of "
                    f"teacher layer {layer}"
                )
            elif need == "position_states":
                what = f"{none_has} the states of all tokens (recipe fdd) of teacher layer {layer}"
            else:
                what = f"{none_has} the signal `{need}` of teacher layer {layer}"
        return f"{what}; {remedy}: `{self._command(missing)}`."

    def _lacking_norm(self) -> str:
        """Of caches with the teacher's output matrix alone."""
        cache = next(cache for cache in self._caches.caches if "final" in cache.config.signals)
        if cache.manifest.norm is not None:
            return str(no_norm(f"the teacher of {cache.folder} ({cache.manifest.teacher['architecture']})"))
        return (
            f"{cache.folder} is older than the option `norm` and does not hold the teacher's final norm; make it anew: "
            f"`{cache.command()}`, or leave out `norm: true`."
        )

    def _ends_at_responses(self, layer: int) -> bool:
        """Whether states of a layer are there, but for those of tokens that are not learnt, which are needed as well."""
        return "states" in self._demand.layers[layer] and any(
            cache.config.response_only and "states" in cache.config.signals
            for cache in self._caches.caches
            if cache.layers.get(layer) == self._demand.granularities[layer]
        )

    def _with_relations(self, layer: int) -> TeacherCache | None:
        """The first cache with relations of a layer, of whatever pairs."""
        for cache in self._caches.caches:
            if cache.layers.get(layer) == self._demand.granularities[layer] and "relations" in cache.config.signals:
                return cache
        return None

    def _granularity(self, layer: int) -> Granularity:
        """Units of a layer; for spans, which have none, those that a cache has there."""
        return self._demand.granularities.get(layer) or self._caches.layers.get(layer, "chunks")

    def _command(self, missing: Iterable[tuple[int | None, str]]) -> str:
        """The command for a cache that holds what is missing, and no more."""
        layers = sorted({layer for layer, _ in missing if layer is not None})
        needs = {need for _, need in missing}
        signals = {_SIGNALS.get(need, need) for need in needs} - {_WEIGHTS}
        wanted = CacheConfig(
            dataset=str(self.documents.folder),
            teacher=ModelConfig(model="MODEL"),
            layers=tuple(LayerConfig(layer=each, granularity=self._granularity(each)) for each in layers),
            signals=tuple(signal for signal in get_args(Signal) if signal in signals),
            state_tokens="all" if needs & {"position_states", "span_states"} else "covered",
            response_only=needs.isdisjoint({"states", "whole_final"}) and not needs.isdisjoint(_OF_LEARNT),
            weights=self._demand.weights,
            window=self._demand.window if "relations" in signals else WINDOW,
            limit=self.documents.limit,
        )
        counts = {"topk": self._demand.likeliest, "sorted": self._demand.sorted}
        counts = {name: count for name, count in counts.items() if name in signals and count}
        wanted = wanted.model_copy(update=counts)
        if not self._caches.caches:
            return commands.cache_teacher(wanted)
        first = self._caches.caches[0]  # what this does not say of it is as there
        changed = wanted.model_dump(include={"signals", "state_tokens", "response_only", "weights", "window"})
        changed |= counts
        rows = self.documents.rows if first.config.limit is not None else wanted.limit
        return first.command(**changed, dataset=wanted.dataset, layers=wanted.layers, limit=rows)


def _once_a_document(demand: TeacherNeeds) -> list[str]:
    """What is demanded that is of no layer."""
    needed = {
        "final": demand.head,
        "norm": demand.norm,
        "whole_final": demand.whole_final,
        "topk": demand.topk or demand.likeliest > 0,
        "argmax": demand.argmax,
        "sorted": demand.sorted > 0,
        "entropy": demand.entropy,
        "logprob": demand.logprob and not demand.logits,
        "embeddings": demand.embeddings,
    }
    return [need for need, is_needed in needed.items() if is_needed]


def _of_spans(demand: TeacherNeeds) -> list[tuple[int | None, str]]:
    """What is demanded of layers for spans."""
    if demand.spans is None:
        return []
    needs = ("span_states", "attention") if demand.spans.weights == "attention" else ("span_states",)
    return [(layer, need) for layer in sorted(demand.spans.layers) for need in needs]


def _require_as_many(cache: TeacherCache, there: int, expected: int, what: str) -> None:
    if there != expected:
        raise cache.damaged(f"it has {there} {what}, and the dataset {expected}")


def _slices(first: Int64[Tensor, " documents"], last: Int64[Tensor, " documents"]) -> list[slice]:
    return list(map(slice, first.tolist(), last.tolist()))
