"""Dual-space distillation with cross-model attention (DSKD, Zhang et al. 2024, arXiv 2406.17328).

Of one document: student positions i with inputs x_i, targets y_i and last states H^s, teacher positions j likewise, of
what is learnt alone. E are input embeddings, W output matrices, p softmax, sg a constant, D the divergence, τ `temperature`:

    Q = [E_s[x]; E_s[y]] W_q + b_q      K = [E_t[x']; E_t[y']] / σ_k      V = (H^t/σ_h + E_t[y']/σ_e) W_v + b_v
    A = softmax_j(Q Kᵀ / √(2D))         B = softmax_i((Q Kᵀ)ᵀ / √(2D))
    Z^{ts} = (A V) sg(W_s)ᵀ             Z^{st} = (B (H^s W_o + b_o)) W_tᵀ

    L_ce  = Σ_i CE(Z^{ts}_i, y_i)
    L_stu = Σ_i gate_i · D(p(sg Z^{ts}_i / τ) ‖ p(Z^s_i / τ))
    L_tea = Σ_j KL(p(Z^t_j / τ) ‖ p(Z^{st}_j / τ))

and the term is their sum over the student's learnt tokens. `gate` is 1 where Z^{ts} has the target as its likeliest token
(`correct`), the probability of its likeliest (`confidence`), or 1 (`none`). E_s is a constant, so L_ce trains W_q and W_v
alone, L_stu the student alone, and L_tea the student, W_o and, through B, W_q. Where a model caps or scales its logits, so
it does here with projected rows; biases of output matrices are left out of them, as published.

σ are standard deviations over learnt rows of the dataset's first documents (`scale: dataset`), or of each document by
itself: neither depends on what else is in a batch. Where both sides have the same tokens there is no attention, embedding
or gate: Z^{ts} = (H^t W_v) sg(W_s)ᵀ, and Z^{st} likewise.

With `top` L_tea is on the teacher's k likeliest tokens and all others as one event. Of its output matrix that takes those
tokens' rows alone, wherever the rest is kept; what the others have is then told of the teacher, and taken as given on both
sides. The signal `topk` names the tokens.

DWA-KD (Vu et al. 2026, arXiv 2602.21669) is the term `dwa`: the same with weights of positions, all of them constants.

    ĥ_i = H(p^s_i) n / Σ_i H(p^s_i)                          L_stu = Σ_i ĥ_i gate_i · D(…)
    ĉ_j = c_j m / Σ_j c_j, c_j = 1 − H(p^t_j) / ln V_t       L_tea = Σ_j ĉ_j KL(…)

over the n and m positions of a document, entropies at temperature 1. `normalise: product` has gate_i inside of ĥ_i instead,
`student_weight: none` leaves ĥ out, and `teacher_weight: none` ĉ.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from schemas.errors import UsageError
from trainer.batches.batch import Batch, TeacherTokens
from trainer.maths.divergence import Name, forward_kl
from trainer.maths.ragged import at_least_float32, normalize_rows, spread, sum_rows
from trainer.models.head import Head
from trainer.models.row_losses import entropies
from trainer.objectives.base import (
    Aside,
    Beginning,
    Embed,
    LogitObjective,
    Logits,
    Needs,
    Options,
    Setting,
    Weighed,
)
from trainer.objectives.cross_space import (
    CrossSpaceOptions,
    Divergences,
    LikeliestTokens,
    agrees,
    diverging,
    teacher_space,
)

#: Documents that the dataset's scales are of.
SCALE_ROWS: Final = 1000
#: A scale is at least this, where all values are equal.
_LEAST: Final = 1e-6

Gate = Literal["correct", "confidence", "none"]


class DualSpaceOptions(CrossSpaceOptions):
    """Options of `dskd`."""

    gate: Gate = "correct"
    scale: Literal["dataset", "document"] = "dataset"
    top: int | None = Field(
        default=None, ge=1
    )  # of L_tea: the teacher's likeliest tokens, and the rest; None: all tokens

    @model_validator(mode="after")
    def _top_is_used(self) -> "DualSpaceOptions":
        if self.top is not None and not self.teacher_space:
            raise ValueError("`top` is of the teacher's space, and `teacher_space` is false")
        return self


class WeightedOptions(DualSpaceOptions):
    """Options of `dwa`."""

    divergence: Name = "srkl"
    gate: Gate = "confidence"
    student_weight: Literal["entropy", "none"] = "entropy"  # beside the gate
    teacher_weight: Literal["certainty", "none"] = "certainty"
    normalise: Literal["entropy", "product"] = "entropy"

    @model_validator(mode="after")
    def _weights_are_there(self) -> "WeightedOptions":
        if self.normalise == "product" and (self.student_weight == "none" or self.gate == "none"):
            raise ValueError("`normalise: product` is of entropy and gate, and one of them is `none`")
        return self


@dataclass(frozen=True)
class _Compared:
    """A student's positions beside a teacher's."""

    scores: Sequence[Float[Tensor, "_positions _teacher_positions"]]  # Q Kᵀ / √(2D) of each document
    nothing: Float[Tensor, "0 0"]  # connected to every parameter behind the scores, also where there are no documents
    mixed: Float[Tensor, "teacher_positions teacher_hidden"]  # what W_v makes V of


class DualSpace(LogitObjective):
    """DSKD. Needs no common tokenizer."""

    options: ClassVar[type[Options]] = DualSpaceOptions
    scales: Tensor

    def __init__(self, options: DualSpaceOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        student, teacher = setting.last_sizes
        self.to_student = nn.Linear(teacher, student)  # W_v, b_v
        if options.teacher_space:
            self.to_teacher = nn.Linear(student, teacher)  # W_o, b_o
        if not setting.same_tokens:
            embedding = setting.student_embedding or setting.student_size
            self.query = nn.Linear(2 * embedding, 2 * teacher)  # W_q, b_q
            # σ_k, σ_h, σ_e of the dataset, which a run that goes on finds in its checkpoint
            self.register_buffer("scales", torch.ones(3, dtype=torch.float64))
        self._ahead: tuple[Batch, _Compared] | None = None  # what `attention` has computed for `aside`

    def needs(self) -> Needs:
        """Last states at the teacher's own positions, and its input embeddings where there is attention."""
        return Needs(
            teacher_final=True,
            embeddings=not self.setting.same_tokens,
            likeliest=self.config.top or 0,
            output_matrix=self.config.teacher_space and self.config.top is None,
        )

    def begin(self, beginning: Beginning) -> None:
        """Measures the scales. Raises UsageError for embeddings that are not as wide as the teacher's last states."""
        assert beginning.teacher_head is not None
        self._vocabulary = len(beginning.teacher_head.weight)
        if self.setting.same_tokens:
            return
        embeddings = beginning.teacher_embeddings
        assert embeddings is not None
        size = self.setting.last_sizes[1]
        keys, states, targets = Spread(), Spread(), Spread()
        for batch in beginning.batches(SCALE_ROWS if self.config.scale == "dataset" else 1):
            assert batch.teacher is not None
            inputs, following = embedded(batch.teacher, embeddings)
            if inputs.shape[1] != size:
                raise UsageError(
                    f"The teacher's input embeddings have {inputs.shape[1]} features and its last states {size}; `dskd` and "
                    "`dwa` add the two, so they cannot be had of this teacher. The term `dskd_eta` needs no embeddings; for its "
                    f"cache: `{beginning.cache_command('dskd-eta')}`."
                )
            assert batch.teacher.final is not None
            keys.add(inputs)
            keys.add(following)
            states.add(batch.teacher.final)
            targets.add(following)
        self.scales.copy_(torch.tensor([numbers.deviation for numbers in (keys, states, targets)], dtype=torch.float64))

    def aside(self, states: Mapping[int, Float[Tensor, "tokens hidden"]], batch: Batch) -> Aside:
        """Projected rows of the student's space, and L_tea."""
        teacher = batch.teacher
        assert teacher is not None
        assert teacher.final is not None
        hidden = states[max(states)].index_select(0, batch.positions)
        if self.setting.same_tokens:
            projected = self.to_student(teacher.final.to(self.to_student.weight.dtype))
            back = self._to_teacher(hidden)
            here, there = hidden.new_ones(len(projected)), hidden.new_ones(len(projected))
        else:
            projected, back = self._attended(hidden, batch, teacher)
            counts = batch.position_rows.diff(), teacher.position_rows.diff()
            both = (counts[0] > 0) & (counts[1] > 0)  # documents in which there is something to attend to
            here, there = (
                spread(both.to(hidden.device, hidden.dtype), rows)
                for rows in (batch.position_rows, teacher.position_rows)
            )
        numerator = None
        if back is not None:
            weights = at_least_float32(there) * self._teacher_weights(teacher)
            numerator = teacher_space(self._in_teacher_space(teacher, back, weights))
        return Aside(projected, numerator, {"here": at_least_float32(here)}, self._weighed(batch, projected))

    def per_token(self, logits: Logits) -> Float[Tensor, " positions"]:
        """L_ce and L_stu at each position."""
        projected, constants = logits.projected[self], logits.at_positions[self]
        losses = diverging(logits.student, projected, self.config.temperature, self.config.rule)
        if self._gated:
            losses = losses * self._gate(projected.detach(), logits.targets)
        if "weights" in constants:
            losses = losses * constants["weights"]
        return constants["here"] * (losses + F.cross_entropy(projected, logits.targets, reduction="none"))

    @property
    def _gated(self) -> bool:
        """Whether positions are gated one by one."""
        return self.config.gate != "none" and not self.setting.same_tokens

    def _gate(
        self, projected: Float[Tensor, "positions vocabulary"], targets: Int64[Tensor, " positions"]
    ) -> Float[Tensor, " positions"]:
        """Of projected logits."""
        if self.config.gate == "correct":
            return agrees(projected, targets)
        return projected.softmax(1).amax(1)

    def _attended(
        self, hidden: Float[Tensor, "positions hidden"], batch: Batch, teacher: TeacherTokens
    ) -> tuple[Float[Tensor, "positions hidden"], Float[Tensor, "teacher_positions teacher_hidden"] | None]:
        """A V and, where it is wanted, B (H^s W_o + b_o)."""
        ahead, self._ahead = self._ahead, None
        compared = ahead[1] if ahead is not None and ahead[0] is batch else self._compare(batch, teacher)
        values = at_least_float32(self.to_student(compared.mixed.to(self.to_student.weight.dtype)))
        own = self._to_teacher(hidden)
        mixes = [compared.nothing @ values[:0]]
        back = [] if own is None else [at_least_float32(own)[:0]]
        tables = documents(batch.position_rows, teacher.position_rows)
        for (mine, theirs), scores in zip(tables, compared.scores, strict=True):
            mixes.append(scores.softmax(1) @ values[theirs])
            if own is not None:
                back.append(scores.t().softmax(1) @ at_least_float32(own[mine]))
        return torch.cat(mixes), torch.cat(back) if back else None

    def attention(self, batch: Batch) -> Float[Tensor, " cells"]:
        """A of each document, [student's positions, teacher's] one after the other, line by line; a constant.

        Where both sides have the same tokens, every position attends to itself. Asked for before `aside` of the same batch, it
        is not computed again there.
        """
        teacher = batch.teacher
        assert teacher is not None
        if self.setting.same_tokens:
            sizes = batch.position_rows.diff().tolist()
            likeness = [torch.eye(size, device=batch.ids.device).flatten() for size in sizes]
            return torch.cat([torch.zeros(0, device=batch.ids.device), *likeness])
        compared = self._compare(batch, teacher)
        self._ahead = batch, compared
        lines = [scores.detach().softmax(1).flatten() for scores in compared.scores]
        return torch.cat([compared.nothing.detach().flatten(), *lines])

    def _compare(self, batch: Batch, teacher: TeacherTokens) -> "_Compared":
        queries = at_least_float32(self.query(self._student_inputs(batch).to(self.query.weight.dtype)))
        assert self.matrices.teacher_embeddings is not None
        assert teacher.final is not None
        inputs, following = (at_least_float32(each) for each in embedded(teacher, self.matrices.teacher_embeddings))
        final = at_least_float32(teacher.final)
        sigma_k, sigma_h, sigma_e = self._scales(inputs, final, following, teacher.position_rows)
        keys = torch.cat([inputs, following], 1) / sigma_k
        tables = documents(batch.position_rows, teacher.position_rows)
        scores = [queries[mine] @ keys[theirs].t() / math.sqrt(keys.shape[1]) for mine, theirs in tables]
        return _Compared(scores, queries[:0] @ keys[:0].t(), final / sigma_h + following / sigma_e)

    def _to_teacher(
        self, hidden: Float[Tensor, "positions hidden"]
    ) -> Float[Tensor, "positions teacher_hidden"] | None:
        """W_o and b_o of the student's states; None: not wanted."""
        if not self.config.teacher_space:
            return None
        states: Tensor = self.to_teacher(hidden.to(self.to_teacher.weight.dtype))
        return states

    def _student_inputs(self, batch: Batch) -> Float[Tensor, "positions two_embeddings"]:
        """[E_s[x]; E_s[y]], constant."""
        vectors = self.matrices.embed(torch.cat([batch.ids[batch.positions], batch.targets])).detach()
        return torch.cat([vectors[: len(batch.targets)], vectors[len(batch.targets) :]], 1)

    def _scales(
        self,
        inputs: Float[Tensor, "positions features"],
        final: Float[Tensor, "positions features"],
        following: Float[Tensor, "positions features"],
        rows: Int64[Tensor, " pointers"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """σ_k, σ_h and σ_e: of all positions, or [positions, 1]."""
        if self.config.scale == "dataset":
            keys, states, targets = self.scales
            return keys, states, targets
        keys, states, targets = (
            spread(_deviations(parts, rows), rows)[:, None] for parts in ([inputs, following], [final], [following])
        )
        return keys, states, targets

    def _in_teacher_space(
        self,
        teacher: TeacherTokens,
        back: Float[Tensor, "teacher_positions teacher_hidden"],
        weights: Float[Tensor, " teacher_positions"],
    ) -> Divergences:
        """L_tea."""
        assert teacher.final is not None
        if self.config.top is None:
            head = self.matrices.teacher_head
            assert head is not None
            return Divergences(head, teacher.final, back, weights, self.config.temperature, forward_kl)
        assert self.matrices.teacher_rows is not None
        assert teacher.likeliest is not None
        assert teacher.likeliest_logprobs is not None
        tokens, places = torch.unique(teacher.likeliest[:, : self.config.top], return_inverse=True)
        return LikeliestTokens(
            self.matrices.teacher_rows(tokens),
            teacher.final,
            back,
            weights,
            self.config.temperature,
            forward_kl,
            places=places.to(back.device, non_blocking=True),
            logprobs=teacher.likeliest_logprobs[:, : self.config.top],
        )

    def _teacher_weights(self, teacher: TeacherTokens) -> float | Float[Tensor, " teacher_positions"]:
        """Of its positions."""
        return 1.0

    def _weighed(self, batch: Batch, projected: Float[Tensor, "positions hidden"]) -> Weighed | None:
        """Of the student's positions, once its output head is there; None: all alike."""
        return None


class WeightedDualSpace(DualSpace):
    """DWA-KD's weights on DSKD."""

    options: ClassVar[type[Options]] = WeightedOptions

    def needs(self) -> Needs:
        """The entropy of the teacher's distributions as well."""
        return replace(super().needs(), entropy=self.config.teacher_space and self.config.teacher_weight != "none")

    @property
    def _gated(self) -> bool:
        return super()._gated and self.config.normalise == "entropy"

    def _teacher_weights(self, teacher: TeacherTokens) -> float | Float[Tensor, " teacher_positions"]:
        """ĉ"""
        if self.config.teacher_weight == "none":
            return 1.0
        assert teacher.entropy is not None
        certainty = (1 - at_least_float32(teacher.entropy) / math.log(self._vocabulary)).clamp(0, 1)
        return _to_length(certainty, teacher.position_rows)

    def _weighed(self, batch: Batch, projected: Float[Tensor, "positions hidden"]) -> Weighed | None:
        """ĥ"""
        if self.config.student_weight == "none":
            return None

        def weights(head: Head, hidden: Float[Tensor, "positions hidden"]) -> Float[Tensor, " positions"]:
            entropy = entropies(head, hidden)
            if super(WeightedDualSpace, self)._gated and self.config.normalise == "product":
                unbiased = replace(head, bias=None)
                for part in head.portions(len(hidden)):
                    logits = at_least_float32(unbiased.logits(projected[part].detach()))
                    entropy[part] *= self._gate(logits, batch.targets[part])
            return _to_length(entropy, batch.position_rows)

        return weights


def _to_length(weights: Float[Tensor, " positions"], rows: Int64[Tensor, " pointers"]) -> Float[Tensor, " positions"]:
    """Scaled to add up to their number in each document."""
    counts = rows.diff().to(weights.device, weights.dtype)
    return normalize_rows(weights, rows) * spread(counts, rows)


def documents(mine: Int64[Tensor, " pointers"], theirs: Int64[Tensor, " pointers"]) -> Iterator[tuple[slice, slice]]:
    """Both sides' positions of each document."""
    for (first, end), (others_first, others_end) in zip(
        pairwise(mine.tolist()), pairwise(theirs.tolist()), strict=True
    ):
        yield slice(first, end), slice(others_first, others_end)


def embedded(teacher: TeacherTokens, embeddings: Embed) -> tuple[Tensor, Tensor]:
    """The teacher's embeddings of the tokens at its positions, and of those that follow: [positions, features] each."""
    return embeddings(teacher.ids[teacher.positions]), embeddings(teacher.targets)


class Spread:
    """The standard deviation of numbers that come in parts, unbiased; exact to rounding in float64."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, values: Float[Tensor, "rows features"]) -> None:
        """Some more (Chan, Golub and LeVeque 1979, "Updating formulae")."""
        count = values.numel()
        if not count:
            return
        values = values.to(torch.float64)
        mean = float(values.mean())
        squares = float((values - mean).square().sum())
        total, shift = self._count + count, mean - self._mean
        self._squares += squares + shift**2 * self._count * count / total
        self._mean += shift * count / total
        self._count = total

    @property
    def deviation(self) -> float:
        """At least `_LEAST`; 1 of fewer than two numbers."""
        return max(math.sqrt(self._squares / (self._count - 1)), _LEAST) if self._count > 1 else 1.0


def _deviations(
    parts: Sequence[Float[Tensor, "positions features"]], rows: Int64[Tensor, " pointers"]
) -> Float[Tensor, " documents"]:
    """The standard deviation of each document's numbers, unbiased; as `Spread` has it."""
    values = torch.cat(list(parts), 1)
    counts = (rows.diff() * values.shape[1]).to(values.device, values.dtype)
    means = sum_rows(values.sum(1), rows) / counts.clamp_min(1)
    squares = sum_rows((values - spread(means, rows)[:, None]).square().sum(1), rows)
    return torch.where(counts > 1, (squares / (counts - 1).clamp_min(1)).sqrt().clamp_min(_LEAST), 1.0)
