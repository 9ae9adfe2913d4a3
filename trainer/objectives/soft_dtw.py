"""Soft dynamic time warping of student and teacher (DWA-KD, Vu et al. 2026, arXiv 2602.21669), beside DSKD.

The two sides of a document are sequences of what is learnt of it: n positions of the student, m of the teacher. In the
notation of `trainer.objectives.dskd`, W_v the same map, W_e one of this term's own:

    hidden        X = H^s        Y = H^t W_v + b_v
    embeddings    X = E_s[y]     Y = E_t[y'] W_e + b_e

and the term is the sum of nDTW(X, Y) (`trainer.maths.warping`) over the spaces of `on` and over documents, divided by the
student's learnt tokens, since nDTW grows with length. `band` keeps paths near DSKD's attention A, a constant. Gradients go to
the student, its embeddings included, and to W_v and W_e. A document of which one side has nothing to learn adds 0.

With `positions: all` the sequences are whole documents, prompts included: all tokens but the last, each with the one that
follows, as the paper's text has it. A is then DSKD's attention among all of these. The denominator stays as it is.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from schemas.errors import UsageError
from trainer.batches.batch import Batch, everywhere
from trainer.maths.warping import Band, table_sizes, warping
from trainer.objectives.base import Beginning, Needs, Objective, Options, Ramp, Setting, StateObjective
from trainer.objectives.dskd import DualSpace

Space = Literal["hidden", "embeddings"]


class SoftDtwOptions(Options):
    """Options of `soft_dtw`."""

    gamma: Annotated[float, Field(gt=0)] | Ramp = 2.0  # temperature of the minimum over paths
    band: Band | None = Band()  # None: no path costs more than it does
    on: tuple[Space, ...] = Field(default=("hidden", "embeddings"), min_length=1)  # spaces that are warped and added up
    normalised: bool = True  # nDTW; else sdtw(C^XY), from which nothing is taken off for what either side is by itself
    positions: Literal["response", "all"] = "response"  # of both sides: what is learnt, or the prompt's tokens as well

    @model_validator(mode="after")
    def _known(self) -> "SoftDtwOptions":
        if isinstance(self.gamma, Ramp) and min(self.gamma.start, self.gamma.end) <= 0:
            raise ValueError("`gamma` must be greater than 0, at both ends of its ramp")
        if len({*self.on}) < len(self.on):
            raise ValueError("`on` names a space twice")
        return self

    def gamma_at(self, progress: float) -> float:
        """γ when `progress` (0 to 1) of all steps are done."""
        return self.gamma.at(progress) if isinstance(self.gamma, Ramp) else self.gamma


class SoftDtw(StateObjective):
    """Warping of responses. Needs no common tokenizer, but DSKD's projector and attention."""

    options: ClassVar[type[Options]] = SoftDtwOptions

    def __init__(self, options: SoftDtwOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        if "embeddings" in options.on:
            features = setting.student_embedding or setting.student_size
            self.embedding_to_student = nn.Linear(setting.last_sizes[1], features)  # W_e, b_e
        self._dual: tuple[DualSpace, ...] = ()  # a tuple, lest its parameters count twice

    def meet(self, terms: Mapping[str, Objective], where: str) -> None:
        """Finds the term of DSKD. Raises UsageError if there is none."""
        self._dual = tuple(term for term in terms.values() if isinstance(term, DualSpace))[:1]
        if not self._dual:
            raise UsageError(
                f"{where}: warping takes its projector and its band from DSKD; add the term `dskd` or `dwa` to the "
                "objectives, or leave this one out."
            )

    def needs(self) -> Needs:
        """Last states at the teacher's own positions, or of all its tokens, and its input embeddings."""
        return Needs(
            teacher_final=True,
            whole_final=self.config.positions == "all",
            embeddings="embeddings" in self.config.on,
        )

    def begin(self, beginning: Beginning) -> None:
        """Raises UsageError for embeddings that are not as wide as the teacher's last states."""
        if "embeddings" not in self.config.on:
            return
        assert beginning.teacher_embeddings is not None
        features = beginning.teacher_embeddings(torch.zeros(0, dtype=torch.int64)).shape[1]
        if features != self.setting.last_sizes[1]:
            raise UsageError(
                f"The teacher's input embeddings have {features} features and its last states "
                f"{self.setting.last_sizes[1]}; set `on: [hidden]` in `soft_dtw`."
            )

    def denominators(self, batch: Batch) -> Float[Tensor, " one"]:
        """The number of the student's learnt tokens."""
        return torch.tensor([len(batch.targets)], dtype=torch.float64)

    def forward(self, states: Mapping[int, Float[Tensor, "tokens _"]], batch: Batch) -> Float[Tensor, " one"]:
        """The sum over documents and spaces."""
        if self.config.positions == "all":
            batch = everywhere(batch)
        teacher = batch.teacher
        assert teacher is not None
        spaces = {"hidden": self._hidden, "embeddings": self._embeddings}
        rows = batch.position_rows, teacher.position_rows
        (dual,) = self._dual
        band = self.config.band
        values = warping(
            [spaces[space](states, batch) for space in self.config.on],
            *rows,
            gamma=self.config.gamma_at(self.progress),
            penalties=None if band is None else band.penalties(dual.attention(batch), table_sizes(*rows)),
            normalised=self.config.normalised,
        )
        return values.sum()[None]

    def _hidden(self, states: Mapping[int, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Last states, the teacher's as DSKD projects them, but unscaled."""
        (dual,) = self._dual
        assert batch.teacher is not None
        assert batch.teacher.final is not None
        final = batch.teacher.final.to(dual.to_student.weight.dtype)
        return states[max(states)].index_select(0, batch.positions), dual.to_student(final)

    def _embeddings(self, _states: Mapping[int, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of the learnt tokens."""
        assert batch.teacher is not None
        assert self.matrices.teacher_embeddings is not None
        theirs = self.matrices.teacher_embeddings(batch.teacher.targets).to(self.embedding_to_student.weight.dtype)
        return self.matrices.embed(batch.targets), self.embedding_to_student(theirs)
