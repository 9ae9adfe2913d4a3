"""The shard function of a teacher cache: rows of the dataset through the teacher, their signals into a shard's tensors.

Batches of a shard are independent and are computed by several threads, each with a copy of the model that shares its
weights. On a CPU there is a thread a core and torch's own threads are off: that is faster than splitting every product
over the cores, and what a batch gives does not depend on how many threads there are, so neither do a shard's bytes. On
a GPU there are two, each on a stream of its own: while one copies its results to the host and places them, the other
computes. Batches are planned from the shard's rows and the recorded token budget alone. Only where memory runs out is a
batch computed in halves, and the last bits of its values may then differ.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import IO, Any, Final

import numpy as np
import torch
from jaxtyping import Int64
from safetensors.torch import save
from torch import Tensor

from pipeline.cache import sizes
from pipeline.cache.documents import Rows, TeacherSide
from pipeline.cache.shard import Packed, ShardTensors, pack
from pipeline.shards.pool import Tick, untold
from schemas.config import CacheConfig, ModelConfig
from schemas.errors import UserError
from schemas.signals import EMBEDDINGS, HEAD, LAYER_SIGNALS, NORM_BIAS, NORM_WEIGHT, SCALARS, VECTOR_SIGNALS
from trainer.maths.layer_signals import layer_signals
from trainer.models.hidden_states import Forward, Request, batches_of
from trainer.models.loading import load_model
from trainer.models.memory import in_halves
from trainer.models.twin import twin
from trainer.teacher.shape import TeacherShape

#: Batches in work at a time on a GPU.
GPU_THREADS: Final = 2


@dataclass(frozen=True)
class CacheShard:
    """A shard (protocol: `pipeline.shards.workspace.Output`); the first one brings the teacher's matrices."""

    rows: int
    tensors: Mapping[str, Tensor]
    stats: dict[str, Any]
    details: dict[str, Any]
    matrices: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # by file

    @property
    def others(self) -> Mapping[str, Callable[[IO[bytes]], None]]:
        """The matrices that are here."""
        return {name: partial(_write, tensors) for name, tensors in self.matrices.items()}

    def write(self, stream: IO[bytes]) -> None:
        """A safetensors file."""
        _write(self.tensors, stream)


def _write(tensors: Mapping[str, Tensor], stream: IO[bytes]) -> None:
    # not `save_file`, which puts a file of its own in the place of the stream's and has other errors for a full disk
    stream.write(save(dict(tensors)))


@dataclass
class _Runner:
    """A copy of the model for one thread, with its stream if it is on a GPU."""

    forward: Forward
    stream: Any = field(default=None)  # torch.cuda.Stream


class CacheStage:
    """Rows [first, last) of the dataset to a shard."""

    def __init__(
        self,
        config: CacheConfig,
        teacher: ModelConfig,
        shape: TeacherShape,
        documents: TeacherSide,
        longest: int,
        token_ids: Int64[np.ndarray, " ids"] | None,
        threads: int,
    ) -> None:
        """Loads the teacher: `teacher` is the config's, with its place and device settled. `longest`: tokens of a row;
        `token_ids`: those whose embeddings are kept, rising; None: of none.

        Raises `UserError` if the teacher cannot be loaded, gives no hidden states, or takes no row that long.
        """
        self.config = config
        self.shape = shape
        self.documents = documents
        request = self._request(config)
        loaded = load_model(teacher, request.deepest)
        loaded.require_room(longest, documents.folder, config.teacher.model)
        self.device = loaded.device
        # what other libraries have put into a model (placement over devices, packed weights) belongs to one copy
        plain = not (teacher.device_map or teacher.quantization)
        self.threads = {"cpu": threads, "cuda": GPU_THREADS}.get(self.device.type, 1) if plain else 1
        self._idle: SimpleQueue[_Runner] = SimpleQueue()
        first = Forward(loaded, request, longest)
        self._require_widths(first)
        self._head = first.head if "final" in config.signals else None
        self._norm = loaded.norm() if "final" in config.signals else None
        self._embeddings = None if token_ids is None else loaded.embeddings()
        self._token_ids = token_ids
        for number in range(self.threads):
            forward = twin(first, loaded.model) if number else first
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
            self._idle.put(_Runner(forward, stream))

    @staticmethod
    def _request(config: CacheConfig) -> Request:
        layers = tuple(each.layer for each in config.layers)
        return Request(
            layers=layers,
            attention=layers if "attention" in config.signals else (),
            final="final" in config.signals,
            topk=config.topk if "topk" in config.signals else None,
            sorted=config.sorted if "sorted" in config.signals else None,
            scalars=tuple(name for name in SCALARS if name in config.signals),
        )

    def _require_widths(self, forward: Forward) -> None:
        """Raises `UserError` if vectors that are to be kept are not as wide as was planned with."""
        kept = VECTOR_SIGNALS & set(self.config.signals)
        layers = [each.layer for each in self.config.layers] if kept & LAYER_SIGNALS else []
        for layer in (*layers, *([self.shape.depth] if "final" in kept else [])):
            if forward.widths[layer] != self.shape.width(layer):
                raise UserError(
                    f"The teacher {self.config.teacher.model!r} ({self.shape.architecture}) gives {forward.widths[layer]} "
                    f"features at layer {layer}, where its config and its output matrix say {self.shape.width(layer)}, so "
                    "vectors of that layer cannot be cached; choose other layers."
                )

    def run(self, item: tuple[int, int], tick: Tick = untold) -> CacheShard:
        """Rows [first, last). Raises `UserError` naming row and layer of what cannot be stored."""
        first, last = item
        config = self.config
        rows = self.documents.read(sizes.granularities(config), first, last, response_only=config.response_only)
        structure = rows.shard(config.layers, sizes.state_tokens(config), config.window)
        counts = structure.counts()
        shard = ShardTensors(structure, sizes.tensors(config, self.shape, counts))
        lengths = rows.lengths
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[Future[list[tuple[Sequence[int], Packed]]]] = deque()

            def place_next() -> None:
                for members, packed in waiting.popleft().result():
                    shard.place(members, packed)
                    tick(len(members), sum(lengths[row] for row in members))

            for members in batches_of(lengths, config.token_budget):
                waiting.append(pool.submit(self._batch_or_halves, rows, members))
                if len(waiting) > self.threads:
                    place_next()
            while waiting:
                place_next()
        matrices, details = self._matrices() if first == 0 else ({}, {})
        return CacheShard(
            rows=len(rows),
            tensors=shard.tensors(),
            stats={
                "tokens": counts.tokens,
                "learnt": counts.learnt,
                "layers": {
                    str(layer): {"units": of.units, "pairs": of.pairs, "state_tokens": of.state_tokens}
                    for layer, of in counts.layers.items()
                },
            },
            details=details,
            matrices=matrices,
        )

    def _matrices(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """The teacher's matrices, by their files, and what the manifest says of them."""
        head, embeddings = self._head, self._embeddings
        matrices: dict[str, dict[str, Tensor]] = {}
        logits: dict[str, Any] | None = None
        norm: dict[str, Any] | None = None
        if head is not None:
            matrices[HEAD] = _tensors(weight=head.weight, bias=head.bias)
            logits = {"soft_cap": head.soft_cap, "scale": head.scale}
            norm = {"kind": "none", "epsilon": None}
        if self._norm is not None:
            matrices[HEAD] |= _tensors(**{NORM_WEIGHT: self._norm.weight, NORM_BIAS: self._norm.bias})
            norm = {"kind": self._norm.kind, "epsilon": self._norm.epsilon}
        tied = head is not None and embeddings is not None and _same(head.weight, embeddings.weight)
        if embeddings is not None and self._token_ids is not None and not tied:
            some = embeddings.of(torch.from_numpy(self._token_ids).to(embeddings.weight.device))
            matrices[EMBEDDINGS] = _tensors(weight=some.weight, ids=some.ids)
        return matrices, {"logits": logits, "norm": norm, "tied_embeddings": tied}

    def _batch_or_halves(self, rows: Rows, members: Sequence[int]) -> list[tuple[Sequence[int], Packed]]:
        """A batch, and where memory runs out the same in parts."""

        def alone(row: int) -> str:
            return (
                f"the row {rows.ids[row]!r} of {rows.lengths[row]} tokens alone in a batch. Use a smaller --dtype, "
                "--set teacher.device_map=auto, or fewer workers."
            )

        return list(in_halves(lambda part: (part, self._batch(rows, part)), members, self.device, alone))

    def _batch(self, rows: Rows, members: Sequence[int]) -> Packed:
        """Everything that is kept of a batch, on the CPU."""
        config = self.config
        units = {name: rows.batch_units(name, members) for name in sizes.granularities(config)}
        learnt = rows.batch_learnt(members)
        runner = self._idle.get()
        try:
            with nullcontext() if runner.stream is None else torch.cuda.stream(runner.stream):
                captured = runner.forward(rows.documents(members), learnt)
                signals = {
                    each.layer: layer_signals(
                        captured.states[each.layer],
                        captured.rows,
                        units[each.granularity].spans,
                        units[each.granularity].rows,
                        LAYER_SIGNALS & set(config.signals),
                        config.state_tokens,
                        config.weights,
                        learnt,
                        config.window,
                    )
                    for each in config.layers
                }
                packed = pack(
                    signals,
                    config.storage,
                    attention=captured.attention,
                    final=captured.final,
                    topk=captured.topk,
                    scalars=captured.scalars,
                    falling=captured.sorted,
                    states_of_final=sizes.states_of_final(config, self.shape),
                )
                return _on_host(packed)
        finally:
            self._idle.put(runner)


def _on_host(packed: Packed) -> Packed:
    """The same on the CPU; waits for this thread's streams only."""
    devices = {tensor.device for tensor in packed.tensors.values() if tensor.device.type == "cuda"}
    host = packed.map(lambda tensor: tensor.to("cpu", non_blocking=tensor.device.type == "cuda"))
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return host


def _tensors(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that are there, as a file takes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two matrices are one, or equal."""
    return one is other or (
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other.to(one.device))
    )
