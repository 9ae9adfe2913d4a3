"""A micro-batch: documents as the student reads them, and what its losses need of the teacher, for the units both have.

All values are flat over the documents, with row pointers (`trainer.maths.ragged`). Structure (pointers, spans, indices) stays
on the CPU, values go to the device; `Batch.to` knows which is which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from schemas.training import DEFAULT_DATA
from trainer.maths.ragged import pointers, spread
from trainer.maths.spans import LearntSpans


@dataclass(frozen=True)
class LayerTargets:
    """The teacher's side of one layer. Units are those of the layer's granularity that both sides have a span of."""

    spans: Int64[Tensor, "units 2"]  # the student's, [start, end) in the tokens of the batch; CPU
    rows: Int64[Tensor, " pointers"]  # units of each document; CPU
    weights: Float[Tensor, " units"]  # ω, adding up to 1 in each document that has units
    later: Int64[Tensor, " units"] | None = None  # which pairs count (`trainer.maths.triangle`); None: all; CPU
    relations: Float[Tensor, " pairs"] | None = None  # cosines of those pairs, flat upper triangles
    units: Float[Tensor, "units teacher_hidden"] | None = None
    states: Float[Tensor, "states teacher_hidden"] | None = None
    state_index: Int64[Tensor, " states"] | None = None  # with `states`: places among the batch's tokens; CPU
    state_weights: Float[Tensor, " states"] | None = None  # with `states`: centrality, out of a document's 1
    #: states at `Batch.positions`, for losses on logits of inner layers
    position_states: Float[Tensor, "positions teacher_hidden"] | None = None


@dataclass(frozen=True)
class TeacherTokens:
    """The teacher's own tokens of the batch's documents, and those of them that are learnt."""

    ids: Int64[Tensor, " teacher_tokens"]  # CPU until `to`
    rows: Int64[Tensor, " pointers"]  # tokens of each document; CPU
    positions: Int64[Tensor, " teacher_positions"]  # tokens whose next one is learnt; CPU until `to`
    position_rows: Int64[Tensor, " pointers"]  # positions of each document; CPU
    targets: Int64[Tensor, " teacher_positions"]  # those next ones
    final: Float[Tensor, "teacher_positions teacher_hidden"] | None = None  # its last states at `positions`
    whole_final: Float[Tensor, "teacher_tokens teacher_hidden"] | None = None  # its last states at all of its tokens
    argmax: Int64[Tensor, " teacher_positions"] | None = None  # its likeliest next tokens there; CPU
    entropy: Float32[Tensor, " teacher_positions"] | None = None  # of its distributions there, in nats
    logprob: Float32[Tensor, " teacher_positions"] | None = None  # of `targets`, as it says
    sorted: Float32[Tensor, "teacher_positions most"] | None = None  # probabilities of the likeliest there, falling
    likeliest: Int64[Tensor, "teacher_positions k"] | None = None  # its k likeliest next tokens there, best first; CPU
    likeliest_logprobs: Float32[Tensor, "teacher_positions k"] | None = None


@dataclass(frozen=True)
class SpanLayer:
    """What one teacher layer says of spans of text that end in both tokenizations (SRA, arXiv 2605.01205)."""

    vectors: Float[Tensor, "spans teacher_hidden"]  # pooled by the teacher's weights of tokens
    weights: Float[Tensor, " spans"]  # ω, adding up to 1 in each document that has spans


@dataclass(frozen=True)
class SpanTargets:
    """Spans of text that begin and end in both tokenizations, and the teacher's side of them."""

    student: LearntSpans  # in what is learnt of the student's tokens
    rows: Int64[Tensor, " pointers"]  # spans of each document; CPU
    layers: Mapping[int, SpanLayer] = field(default_factory=dict)  # by teacher layer


@dataclass(frozen=True)
class Chunks:
    """Parts of learnt texts that begin and end in both tokenizations, in order; all on the CPU."""

    student: Int64[Tensor, "chunks 2"]  # [start, end) in `Batch.positions`: those whose next tokens are the chunk's
    teacher: Int64[Tensor, "chunks 2"]  # in `TeacherTokens.positions`
    rows: Int64[Tensor, " pointers"]  # chunks of each document


@dataclass(frozen=True)
class Batch:
    """Some documents, all of one dataset."""

    documents: Int64[Tensor, " documents"]  # rows of the dataset; CPU
    ids: Int64[Tensor, " tokens"]  # the student's; CPU until `to`
    rows: Int64[Tensor, " pointers"]  # tokens of each document; CPU
    positions: Int64[Tensor, " positions"]  # tokens whose next one belongs to the response; CPU until `to`
    position_rows: Int64[Tensor, " pointers"]  # positions of each document; CPU
    targets: Int64[Tensor, " positions"]  # those next ones
    layers: Mapping[int, LayerTargets] = field(default_factory=dict)  # by teacher layer
    final: Float[Tensor, "positions teacher_hidden"] | None = None  # the teacher's last states at `positions`
    topk_indices: Int64[Tensor, "positions k"] | None = None
    topk_logprobs: Float32[Tensor, "positions k"] | None = None
    teacher: TeacherTokens | None = None  # for losses that need no common tokens
    #: Places in `positions` and in `teacher.positions` whose next tokens are the same text; CPU.
    pairs: Int64[Tensor, "pairs 2"] | None = None
    #: Places in `positions`, rising, and in `teacher.positions` that MinED has aligned and whose tokens are the same; CPU.
    mined: Int64[Tensor, "mined 2"] | None = None
    spans: SpanTargets | None = None
    chunks: Chunks | None = None
    #: What each document's last query pays its tokens in the student itself, by layer: known once that has run.
    attention: Mapping[int, Float[Tensor, " tokens"]] = field(default_factory=dict)
    data: str = DEFAULT_DATA  # which dataset of the run they are of

    def to(self, device: torch.device | str) -> "Batch":
        """Its values on a device."""

        def moved(path: Path, tensor: Tensor) -> Tensor:
            return tensor if path[-1] in _STRUCTURE else tensor.to(device, non_blocking=True)

        return mapped(self, moved)


def everywhere(batch: Batch) -> Batch:
    """The batch as if all tokens of both sides were learnt, but a document's first, which is nobody's next.

    Tokens of both sides alone, with `whole_final` in place of the teacher's `final`: all else is of what is really learnt.
    """
    teacher = batch.teacher
    assert teacher is not None
    assert teacher.whole_final is not None
    positions, position_rows = _followed(batch.rows)
    theirs, their_rows = _followed(teacher.rows)
    here, there = (each.to(batch.ids.device, non_blocking=True) for each in (positions, theirs))
    tokens = TeacherTokens(
        teacher.ids, teacher.rows, there, their_rows, teacher.ids[there + 1], final=teacher.whole_final[there]
    )
    return Batch(batch.documents, batch.ids, batch.rows, here, position_rows, batch.ids[here + 1], teacher=tokens)


def _followed(rows: Int64[Tensor, " pointers"]) -> tuple[Int64[Tensor, " positions"], Int64[Tensor, " pointers"]]:
    """Tokens that another one of their document follows, and pointers of each document's; on the CPU."""
    position_rows = pointers((rows.diff() - 1).clamp_min(0))
    shift = spread(rows[:-1] - position_rows[:-1], position_rows)
    return torch.arange(int(position_rows[-1])) + shift, position_rows


#: what stays on the CPU
_STRUCTURE: Final = frozenset(
    {
        "documents",
        "rows",
        "position_rows",
        "spans",
        "later",
        "state_index",
        "tokens",
        "pairs",
        "mined",
        "argmax",
        "likeliest",
        "student",
        "teacher",
    }
)

Path = tuple[str | int, ...]  # of a tensor: fields, and layers, from the batch on
Part = TypeVar("Part", LayerTargets, TeacherTokens, SpanLayer, LearntSpans, SpanTargets, Chunks, Batch)


def mapped(part: Part, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Part:
    """The same with all its tensors changed; `change` is told where each stands, `path` where the part does."""
    values: dict[str, Any] = {}
    for each in fields(part):
        value: Any = getattr(part, each.name)
        where: Path = (*path, each.name)
        if isinstance(value, Tensor):
            values[each.name] = change(where, value)
        elif isinstance(value, Mapping):
            values[each.name] = {
                layer: change((*where, layer), of_layer)
                if isinstance(of_layer, Tensor)
                else mapped(of_layer, change, (*where, layer))
                for layer, of_layer in value.items()
            }
        elif is_dataclass(value):
            values[each.name] = mapped(value, change, where)  # type: ignore[type-var]
    return replace(part, **values)


def tensors(batch: Batch) -> dict[Path, Tensor]:
    """All of its tensors, by where they stand."""
    found: dict[Path, Tensor] = {}

    def note(path: Path, tensor: Tensor) -> Tensor:
        found[path] = tensor
        return tensor

    mapped(batch, note)
    return found
