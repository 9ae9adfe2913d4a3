"""What a term of the loss is. One file a term, registered in `trainer.objectives`.

A term is a sum over elements (tokens, units, pairs) divided by a denominator, in one part or several (one a layer, say),
which are averaged or added. Denominators depend on the data alone (where an option asks for it, on the model as it is before
the step), so the trainer adds them up over all micro-batches and ranks of a step before anything is computed: the loss of a
step, and its gradient, do not depend on how its documents were dealt out, and nothing of it depends on padding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from schemas.config import Mined, Name, Strict
from schemas.training import DEFAULT_DATA, LayerPair, PairConfig
from trainer.batches.batch import Batch
from trainer.models.head import Head
from trainer.models.row_losses import RowWork

#: What a term may ask for of a teacher layer: signals of a cache; `position_states` are `states` at response positions.
LayerNeed = Literal["relations", "units", "states", "position_states"]
#: What two sides must have read up to positions that are aligned: anything, or the same text.
Prefix = Literal["any", "exact"]


@dataclass(frozen=True)
class SpanNeed:
    """Spans of text that end in both tokenizations, pooled."""

    layers: frozenset[int]  # of the teacher
    weights: Literal["attention", "uniform"]  # of tokens: the last query's attention, or all alike
    most: int  # spans of a document


@dataclass(frozen=True)
class MinedNeed:
    """Positions that MinED has aligned, of which the input tokens are the same."""

    vocabulary: Mined  # which tokens are
    prefix: Prefix  # whether both sides must also have read the same text


@dataclass(frozen=True)
class Needs:
    """What a term needs of the teacher."""

    layers: Mapping[int, frozenset[LayerNeed]] = field(default_factory=dict)  # by teacher layer
    #: Of the pairs of units that it looks at, if it does (`trainer.maths.triangle`): the window, or None where all count.
    windows: frozenset[int | None] = frozenset()
    final: bool = False  # last states at the student's positions
    topk: bool = False
    instead: str | None = None  # what to set where the same tokens are needed and the two sides have others
    # what needs no common tokens
    teacher_final: bool = False  # last states at the teacher's own positions
    whole_final: bool = False  # last states of all of the teacher's own tokens
    embeddings: bool = False  # its input embeddings
    argmax: bool = False  # its likeliest tokens, at its own positions
    entropy: bool = False  # that of its distributions there
    logprob: bool = (
        False  # log-probabilities of its own next tokens there, if its logits are not at hand (`teacher_logprobs`)
    )
    sorted: int = 0  # probabilities of so many of its likeliest tokens there
    likeliest: int = 0  # so many of its likeliest tokens there, with their probabilities
    pairs: bool = False  # positions whose next tokens are the same text
    mined: MinedNeed | None = None
    spans: SpanNeed | None = None
    chunks: bool = False  # parts of text that end in both tokenizations
    shared: bool = False  # tokens that both vocabularies have
    output_matrix: bool = False  # its output matrix, for states that come otherwise
    output_rows: bool = False  # some rows of it alone, likewise
    norm: bool = False  # its final norm, for states of inner layers

    @property
    def head(self) -> bool:
        """Whether the teacher's logits are."""
        return self.final or self.teacher_final or self.output_matrix or self.output_rows

    @property
    def same_tokens(self) -> bool:
        """Whether student and teacher must have the same tokens."""
        return self.final or self.topk or any({"states", "position_states"} & kinds for kinds in self.layers.values())


@dataclass(frozen=True)
class Setting:
    """What a term is built for."""

    pairs: tuple[PairConfig, ...]  # layers, lowest first
    student_size: int  # hidden size
    teacher_size: int
    student_weights: Literal["centrality", "uniform"] = "centrality"  # of tokens
    #: The last layer and its features, where those are not the hidden size (as OPT-350m's).
    student_last: tuple[int, int] | None = None
    teacher_last: tuple[int, int] | None = None
    same_tokens: bool = False  # whether both sides of the dataset have the same tokens
    student_embedding: int | None = None  # features of the student's input embeddings; None: the hidden size
    #: Tokens of equal bytes, the student's id and the teacher's; None: not known, or the ids are the same.
    shared: Int64[Tensor, "shared 2"] | None = None
    #: Of each of the teacher's tokens the student's that is nearest to it, or -1; None: not known.
    nearest: Int64[Tensor, " teacher_vocabulary"] | None = None

    @property
    def last_sizes(self) -> tuple[int, int]:
        """Features of the last hidden states: the student's and the teacher's."""
        student, teacher = self.student_last, self.teacher_last
        return student[1] if student else self.student_size, teacher[1] if teacher else self.teacher_size

    def sizes(self, pair: LayerPair) -> tuple[int, int]:
        """Features of the hidden states that a pair aligns: the student's and the teacher's."""
        student, teacher = (dict([last] if last else []) for last in (self.student_last, self.teacher_last))
        return student.get(pair.student, self.student_size), teacher.get(pair.teacher, self.teacher_size)


class Ramp(Strict):
    """A number that changes linearly from `start` to `end` over the first part `over` of all steps, then stays."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    over: float = Field(default=1.0, gt=0, le=1)

    def at(self, progress: float) -> float:
        """The number when `progress` (0 to 1) of all steps are done."""
        return self.start + (self.end - self.start) * min(progress / self.over, 1.0)


class Options(Strict):
    """What every term's config has."""

    weight: Annotated[float, Field(ge=0)] | Ramp = 1.0
    #: the dataset that it looks at, or several, as if they were one; their names are keys of `data.more`
    data: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = DEFAULT_DATA
    term: Name | None = None  # what it is, where its key is that with more behind it: `dsa_student: {term: dsa}`

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of those that it looks at."""
        return (self.data,) if isinstance(self.data, str) else self.data

    def weight_at(self, progress: float) -> float:
        """The weight when `progress` (0 to 1) of all steps are done."""
        return self.weight.at(progress) if isinstance(self.weight, Ramp) else self.weight


#: A model's input embeddings of token ids.
Embed = Callable[[Int64[Tensor, " tokens"]], Float[Tensor, "tokens embedding"]]


#: Rows of a model's output matrix for some tokens, which are on the CPU.
TeacherRows = Callable[[Int64[Tensor, " tokens"]], Head]


@dataclass(frozen=True)
class Matrices:
    """What terms may use of both models besides hidden states."""

    embed: Embed  # the student's, with gradient
    #: M -> Wᵀ M, W the student's output matrix at these tokens: [tokens], [tokens, columns] -> [hidden, columns]; constant
    output_product: Callable[
        [Int64[Tensor, " tokens"], Float[Tensor, "tokens columns"]], Float[Tensor, "hidden columns"]
    ]
    #: sums of some losses through the student's output matrix, without gradient
    sums: Callable[[RowWork], Float[Tensor, " losses"]]
    teacher_head: Head | None = None
    teacher_embeddings: Embed | None = None
    #: rows of the teacher's output matrix for some tokens, which are on the CPU, brought to where terms compute
    teacher_rows: TeacherRows | None = None


@dataclass(frozen=True)
class Beginning:
    """What a term may look at before the first step, the same on every rank."""

    #: of the first rows of the term's dataset, the first of several; so many at most, on the CPU
    batches: Callable[[int], Iterator[Batch]]
    student_head: Head
    teacher_head: Head | None
    teacher_embeddings: Embed | None
    #: of a recipe (`schemas.signals.RECIPES`) the command for a cache of the run's dataset that has its signals, for messages
    cache_command: Callable[[str], str]


class Objective(nn.Module):
    """A term; its parameters, if it has any, are the projectors, which are no part of the student."""

    options: ClassVar[type[Options]] = Options
    pairs: tuple[PairConfig, ...] = ()  # layers that it compares (`trainer.objectives.layers`)
    matrices: Matrices  # set before the first batch

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__()
        self.config = options
        self.setting = setting
        self.step = 0  # of the run: which optimizer step is in work
        self.progress = 0.0  # of the run: how much of all steps is done
        self.divided_by = torch.ones(1, dtype=torch.float64)  # denominators of the step that is in work

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of those whose batches it looks at."""
        names: tuple[str, ...] = self.config.datasets
        return names

    def begin(self, beginning: Beginning) -> None:
        """Called once, before the first step and before weights are partitioned."""

    def meet(self, terms: Mapping[str, "Objective"], where: str) -> None:
        """Called once with all terms that look at its datasets, too, for one that takes something of another; `where` names its
        own key."""

    def needs(self) -> Needs:
        """What it needs of the teacher."""
        return Needs()

    def idle(self) -> Iterator[Float[Tensor, ""]]:
        """Zeros with a gradient, of nothing, to each of its parameters: a micro-batch of another dataset passes it by, and
        ZeRO expects gradients of all. Its parameters are those of linear layers."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                yield module(module.weight.new_zeros(0, module.in_features)).sum()

    def student_layers(self) -> tuple[int, ...]:
        """Student layers (indices into `hidden_states`) whose states it looks at, besides the last one's logits."""
        return ()

    @property
    def counts_by_model(self) -> bool:
        """Whether its denominators depend on the model as it is before a step, too. They are asked for on every rank alike."""
        return False

    def attention_layers(self) -> tuple[int, ...]:
        """Student layers, from 1, of which it looks at what the last query pays (`Batch.attention`)."""
        return ()

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """float64, on the CPU: a denominator for each part, of this micro-batch alone."""
        raise NotImplementedError

    def combined(self, parts: Float[Tensor, " parts"]) -> Float[Tensor, ""]:
        """The term of its parts, each already divided: their mean."""
        return parts.mean()


class StateObjective(Objective):
    """A term on hidden states."""

    def forward(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch) -> Float[Tensor, " parts"]:
        """Numerators, of this micro-batch alone, with gradients to `states` (the student's, flat) and projectors.

        Finite, and connected to every parameter of its own, also for a batch without units.
        """
        raise NotImplementedError


#: The student's output head and last states to weights of positions.
Weighed = Callable[[Head, Float[Tensor, "positions hidden"]], Float[Tensor, " positions"]]


@dataclass(frozen=True)
class Aside:
    """What a term on logits brings along, once a micro-batch, before any logits are there."""

    #: rows that go through the student's output matrix, too, which is a constant to them, without its bias
    projected: Float[Tensor, "positions hidden"] | None = None
    #: added to the term's sum over positions: what of it is not at the student's positions
    numerator: Float[Tensor, ""] | None = None
    at_positions: Mapping[str, Tensor] = field(default_factory=dict)  # constants, handed back by position
    #: of the student's output head and last states the weights of positions, then among `at_positions` as `weights`
    weighed: Weighed | None = None


@dataclass(frozen=True)
class Logits:
    """Some positions, at which the student and the teacher give logits for the next token; float32."""

    student: Float[Tensor, "positions vocabulary"]
    targets: Int64[Tensor, " positions"]
    inner: Mapping[int, Float[Tensor, "positions vocabulary"]]  # student layer -> its states through the output head
    teacher: Float[Tensor, "positions teacher_vocabulary"] | None = None
    teacher_inner: Mapping[int, Float[Tensor, "positions teacher_vocabulary"]] = field(default_factory=dict)
    #: the same through either model's final norm, where a term asks for that
    normed: Mapping[int, Float[Tensor, "positions vocabulary"]] = field(default_factory=dict)
    teacher_normed: Mapping[int, Float[Tensor, "positions teacher_vocabulary"]] = field(default_factory=dict)
    topk_indices: Int64[Tensor, "positions k"] | None = None
    topk_logprobs: Float[Tensor, "positions k"] | None = None
    #: logits of what terms have projected, and their constants
    projected: Mapping["LogitObjective", Float[Tensor, "positions vocabulary"]] = field(default_factory=dict)
    at_positions: Mapping["LogitObjective", Mapping[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def student_logprobs(self) -> Float[Tensor, "positions vocabulary"]:
        """log softmax of `student`: computed, and differentiated, once for all terms."""
        return self.student.log_softmax(1)


@runtime_checkable
class Rider(Protocol):
    """A loss on logits that are computed at the batch's positions for other terms anyway, and on means of them."""

    @property
    def factor(self) -> float:
        """What it is multiplied by."""

    @property
    def bounds(self) -> Sequence[int] | None:
        """As `trainer.models.row_losses.RowWork.bounds`."""

    def portion(self, part: slice) -> Callable[[Logits, slice, slice], Float[Tensor, ""]]:
        """Of positions in this part, for which it may compute what they are compared with: of what is predicted, at which
        positions of all, and which of the portion, the loss's sum."""


class RowObjective(Objective):
    """A term on logits of rows of its own, through the student's output matrix; in one part."""

    def work(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float) -> RowWork:
        """One loss, multiplied by `factor`. `states` as of `StateObjective.forward`, the last layer's among them."""
        raise NotImplementedError

    def work_beside(
        self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch, factor: float
    ) -> tuple[Rider | None, RowWork | None]:
        """The same where logits at the batch's positions are computed for other terms: what of it can be had of those, and
        the rest, if there is either."""
        return None, self.work(states, batch, factor)


@dataclass(frozen=True)
class NormedLayers:
    """Inner layers whose states go through their model's final norm before its output matrix."""

    student: frozenset[int] = frozenset()
    teacher: frozenset[int] = frozenset()


class LogitObjective(Objective):
    """A term on logits: a mean over response tokens. Computed on some positions at a time (`trainer.student.output_head`)."""

    normed = NormedLayers()

    def denominators(self, batch: Batch) -> Float[Tensor, " parts"]:
        """The number of response tokens. The term is divided by the first; whatever else it counts is in `divided_by`."""
        return torch.tensor([len(batch.targets)], dtype=torch.float64)

    def aside(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch) -> Aside | None:
        """What it brings along; None: nothing. `states` as of `StateObjective.forward`, the last layer's among them."""
        return None

    def per_token(self, logits: Logits) -> Float[Tensor, " positions"]:
        """The loss at each position, differentiable in the student's logits; float32."""
        raise NotImplementedError
