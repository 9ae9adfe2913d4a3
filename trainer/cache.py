"""Reading a teacher cache: signals of any row and layer, off memory-mapped shards, nothing touched but what is asked for.

    from trainer.cache import TeacherCache
    cache = TeacherCache("cache")
    cache.layers                     # {24: "words", 36: "chunks", 48: "chunks"}
    cache.relations(0, 36)           # [K, K] cosines of the first row's chunks at layer 36
    cache.unit_index(0, 36)          # [K] which of the row's chunks those are

Everything comes as tensors on the CPU, in memory of their own, vectors and weights in float32. A shard is opened
when one of its rows is first asked for. A cache may be forked with shards open, and pickled: it opens them anew.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from schemas import signals as names
from schemas.signals import TOP, Scalar, Signal
from trainer.cache_folder import TENSORS, CacheFolder
from trainer.maths.quantization import DTYPES, decode
from trainer.maths.triangle import from_fixed_point, square
from trainer.models.embeddings import Embeddings
from trainer.models.final_norm import FinalNorm
from trainer.models.head import SCALAR_TYPES, Head

#: Of a row's elements, all.
EVERYTHING: Final = slice(None)


class TeacherCache(CacheFolder[Tensor]):
    """A finished cache. Rows are those of the dataset, from 0, in its order; layers are indices into `hidden_states`.

    Raises `StateError` for a folder that is unfinished or damaged as far as can be seen without reading it through: sizes,
    the checksums of the index and the output matrix, and the structure of whatever is read. Values of shards are taken at
    their word, unless `verify` is given, which compares every checksum first. Raises `UsageError`, naming the command that
    makes what is missing, for rows, layers and signals that it does not hold.
    """

    numbers: ClassVar[Literal["numpy", "pt"]] = TENSORS

    def unit_index(self, row: int, layer: int) -> Int64[Tensor, " units"]:
        """Which units of the layer's granularity have a teacher span: places in the dataset's column, rising."""
        return self.values(row, "unit_index", layer).to(torch.int64)

    def unit_weights(self, row: int, layer: int) -> Float32[Tensor, " units"]:
        """The teacher's weight of each of those units; they add up to 1 (if there are any)."""
        return self.values(row, "unit_weights", layer).clone()

    def triangle(self, row: int, layer: int) -> Float32[Tensor, " pairs"]:
        """Cosines of every pair of units, as a flat upper triangle (`trainer.maths.triangle`), of a long document a band."""
        return self.triangles([row], layer)

    def triangles(self, rows: Sequence[int], layer: int) -> Float32[Tensor, " pairs"]:
        """Those of several rows, one after the other."""
        return from_fixed_point(torch.cat([self.values(row, "relations", layer) for row in rows]))

    def relations(self, row: int, layer: int) -> Float32[Tensor, "units units"]:
        """Cosines of every pair of units: symmetric, ones on the diagonal, NaN where a long document has no pair."""
        return square(self.triangle(row, layer), len(self.unit_index(row, layer)), self.config.window)

    def units(self, row: int, layer: int) -> Float32[Tensor, "units hidden"]:
        """Pooled vector of each unit."""
        return decode(*self._stored(row, "units", layer))

    def learnt_index(self, row: int) -> Int64[Tensor, " kept_tokens"]:
        """Which of the row's teacher tokens have their `states`, `final` and what is of the next token kept, rising: with
        `response_only` those that are learnt and the one before each, else all."""
        if not self.config.response_only:
            return torch.arange(self.tokens(row))
        return self.token_index(row, names.LEARNT_INDEX).to(torch.int64)

    def parts_of(self, row: int, spans: Int64[Tensor, "spans 2"]) -> list[slice]:
        """Where spans of a row's teacher tokens stand among those of `learnt_index`; all of their tokens must be there."""
        if self.config.response_only:
            places = torch.searchsorted(self.learnt_index(row), spans.contiguous())
            if not torch.equal(places.diff(dim=1), spans.diff(dim=1)):  # rising numbers, as many as there are
                raise self.damaged(f"it lacks tokens of row {row} that the dataset says are learnt")
            spans = places
        return [slice(first, last) for first, last in spans.tolist()]

    def state_index(self, row: int, layer: int) -> Int64[Tensor, " state_tokens"]:
        """Which of the row's teacher tokens have their states kept, rising."""
        if self.config.state_tokens == "all":
            return self.learnt_index(row)
        return self.token_index(row, "state_index", layer).to(torch.int64)

    def states(self, row: int, layer: int) -> Float32[Tensor, "state_tokens hidden"]:
        """Hidden states of those tokens."""
        return decode(*self._stored(row, "states", layer))

    def token_weights(self, row: int, layer: int) -> Float32[Tensor, " state_tokens"]:
        """Weights of those tokens; those of all the row's tokens add up to 1."""
        return self.values(row, "token_weights", layer).clone()

    def attention(self, row: int, layer: int) -> Float32[Tensor, " tokens"]:
        """What the last query of this layer pays each token, over its heads; adds up to 1."""
        return self.values(row, "attention", layer).clone()

    def final(self, row: int) -> Float32[Tensor, "kept_tokens hidden"]:
        """Last hidden state of each token of `learnt_index`, after the final norm."""
        return decode(*self._stored(row, "final"))

    def topk(
        self, row: int, part: slice = EVERYTHING
    ) -> tuple[Int64[Tensor, "kept_tokens k"], Float32[Tensor, "kept_tokens k"]]:
        """The most likely next tokens after each token of `learnt_index`, or each of some, and their log-probabilities."""
        indices = self.values(row, names.TOPK_INDICES)[part]
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.manifest.teacher["vocabulary"]:
            raise self.damaged(f"the likeliest tokens of row {row} are beyond the vocabulary")
        logprobs = self.values(row, names.TOPK_LOGPROBS)[part]
        return indices.to(torch.int64), logprobs.to(torch.float32, copy=True)

    def sorted(self, row: int, part: slice = EVERYTHING) -> Float32[Tensor, "kept_tokens most"]:
        """Probabilities of the likeliest next tokens after each token of `learnt_index`, or each of some; falling."""
        values = self.values(row, names.SORTED)
        if values.dtype != torch.float16 or values.shape[1:] != (self.config.sorted,):
            raise self.damaged(f"its sorted probabilities are {values.dtype} {tuple(values.shape)}")
        return values[part].to(torch.float32, copy=True)

    @property
    def most_sorted(self) -> int:
        """How many of the likeliest tokens' probabilities it has of each distribution; 0: none."""
        if "sorted" in self.config.signals:
            return self.config.sorted
        return self.config.topk if "topk" in self.config.signals else 0

    def entropy(self, row: int) -> Float32[Tensor, " kept_tokens"]:
        """Of the next token after each token of `learnt_index`, by the teacher, in nats."""
        return self._scalar(row, "entropy")

    def argmax(self, row: int) -> Int64[Tensor, " kept_tokens"]:
        """The likeliest next token after each token of `learnt_index`."""
        return self._scalar(row, "argmax").to(torch.int64)

    def logprob(self, row: int) -> Float32[Tensor, " kept_tokens"]:
        """The log-probability of the row's own next token after each token of `learnt_index`; 0 behind the row's last."""
        return self._scalar(row, "logprob")

    def _scalar(self, row: int, name: Scalar) -> Shaped[Tensor, " kept_tokens"]:
        values = self.values(row, name)
        if values.dtype != SCALAR_TYPES[name] or values.ndim != 1:
            raise self.damaged(f"its {name} are {values.dtype} {tuple(values.shape)}")
        if name == "argmax" and bool(((values < 0) | (values >= self.manifest.teacher["vocabulary"])).any()):
            raise self.damaged(f"the likeliest tokens of row {row} are beyond the vocabulary")
        return values.clone()

    def vectors(
        self, row: int, signal: Signal, layer: int | None = None, part: slice = EVERYTHING
    ) -> Float[Tensor, "elements hidden"]:
        """`units` or `states` of a layer, or `final`, or some of them, with as little work as can be.

        Vectors without scales are views of the mapped file in the type that they are stored in, not to be written to;
        others are decoded to float32.
        """
        stored, scale = self._stored(row, signal, layer)
        return stored[part] if scale is None else decode(stored[part], scale[part])

    @cached_property
    def head(self) -> Head:
        """The teacher's output matrix, memory-mapped, what it does to its logits, and its final norm, if that is known."""
        self._require_signal("final")
        entry, logits = self.manifest.head, self.manifest.logits
        assert entry is not None  # manifests are read so
        assert logits is not None
        self._require_checksums([entry.file])
        file = self._open_file(entry.file)
        names_there = frozenset(file.keys())
        bias, norm_weight, norm_bias = (
            file.get_tensor(name) if name in names_there else None
            for name in ("bias", names.NORM_WEIGHT, names.NORM_BIAS)
        )
        norm, kind = None, self.manifest.norm
        if kind is not None and self.knows_norm:
            norm = FinalNorm(kind["kind"], kind["epsilon"], norm_weight, norm_bias)
        return Head(file.get_tensor("weight"), bias, logits["soft_cap"], logits["scale"], norm)

    @property
    def knows_norm(self) -> bool:
        """Whether it holds the teacher's final norm, which older caches do not, nor those of a teacher without one."""
        return self.manifest.norm is not None and self.manifest.norm["kind"] != "none"

    @cached_property
    def embeddings(self) -> Embeddings:
        """The teacher's input embeddings, memory-mapped: of every token that the dataset has on the teacher's side."""
        self._require_signal("embeddings")
        if self.manifest.tied_embeddings:
            return Embeddings(self.head.weight)
        entry = self.manifest.embeddings
        assert entry is not None  # manifests are read so
        self._require_checksums([entry.file])
        file = self._open_file(entry.file)
        weight, ids = file.get_tensor("weight"), file.get_tensor("ids")
        if len(weight) != len(ids) or ids.dtype != torch.int64 or bool((ids.diff() <= 0).any()):
            raise self.damaged(f"{entry.file} does not say which tokens its rows are of")
        return Embeddings(weight, ids)

    def logits(self, row: int) -> Float32[Tensor, "kept_tokens vocabulary"]:
        """The teacher's logits after each token of `learnt_index`, computed in the type of its output matrix, as the teacher
        does."""
        return self.head.logits(self.final(row)).to(torch.float32)

    def _stored(
        self, row: int, signal: Signal, layer: int | None = None
    ) -> tuple[Shaped[Tensor, "elements hidden"], Float32[Tensor, " elements"] | None]:
        """A row's vectors in the mapped file, as they are stored, and their scales if their type has them."""
        depth = self.manifest.teacher["depth"]
        if signal == "states" and layer is not None and self.config.states_are_final(layer, depth):
            self._require_layer(layer, signal)
            return self._stored(row, "final")
        storage = getattr(self.config.storage, signal)
        values = self.values(row, signal, layer)
        if values.dtype != DTYPES[storage]:
            raise self.damaged(f"its {signal} are stored as {values.dtype}, its manifest says {storage}")
        return values, self.values(row, signal, layer, scales=True) if storage in TOP else None
