"""A training run: assembled from its config, and stepped from its last checkpoint to the exported student.

The rows of a step follow from its number (`trainer.batches.loader`), and so does all else that decides it
(`trainer.step`). So the number of steps done, and what DeepSpeed saves, is the whole state.
"""

import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from schemas import console
from schemas.errors import StateError, UserError
from schemas.training import DEFAULT_DATA, TrainConfig
from trainer.batches.batch import Batch
from trainer.batches.loader import BatchSource, StepLoader
from trainer.datasets import open_datasets
from trainer.engine.best import Best, BestStudent
from trainer.engine.checkpoint import Checkpoints, State
from trainer.engine.monitor import CURVES, Monitor, memory_gb, require_trackers
from trainer.engine.optimizer import optimizer
from trainer.engine.ranks import from_first, gathered, in_step, together
from trainer.engine.zero import deepspeed_config, finite, offloads, stage, start, whole_state
from trainer.folder import STUDENT, claim, held, require_ours
from trainer.models.embeddings import Embeddings
from trainer.models.head import Head
from trainer.models.hub import identity
from trainer.models.loading import placed
from trainer.objectives.base import Beginning
from trainer.sources import Sources, require_same_sources, sources
from trainer.step import Stepper, StepResult
from trainer.student.distiller import Distiller
from trainer.student.export import export_run, require_tokenizer
from trainer.student.limits import require_lengths, require_vocabulary
from trainer.student.model import Student, load_student
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.live import LiveTeacher, live_teachers
from trainer.teacher.needs import TeacherNeeds
from trainer.terms import needs_of, terms_of

#: Documents that terms look at together before the first step.
BEGINNING_ROWS: Final = 16
#: Rows that are looked at for what tokenizers do to text.
SPELLED_ROWS: Final = 256


class Interrupted(Exception):  # noqa: N818  # no error: what was done is saved
    """The run was told to stop, and has saved itself."""


def train(config: TrainConfig, overwrite: bool) -> Path:
    """Train, or go on training, and return the exported student's folder. Every rank calls it.

    `overwrite`: forget what is in the output folder. Raises `UserError` and its kin for configs, data and models that do
    not fit; `Interrupted` after SIGTERM or SIGINT, when the state is saved.
    """
    out = Path(config.out)
    with held(out):
        with together():
            require_ours(out, config, overwrite)
        run = Run(config, fresh=overwrite)
        claim(out, config, overwrite)
        run.train()
        return run.finish()


class Run:
    """Everything a run holds in memory."""

    done: int  # steps
    saved: int  # steps done when it was saved last
    engine: Any  # deepspeed.DeepSpeedEngine
    zero_stage: int

    def __init__(self, config: TrainConfig, fresh: bool) -> None:
        """Nothing is written yet. `fresh`: whatever is in the output folder is not gone on from."""
        self.config = config
        self.out = Path(config.out)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.checkpoints = Checkpoints(self.out, config.checkpoint.keep)
        self.best_student = BestStudent(self.out)
        self._stop = False
        with together():
            engine_config = deepspeed_config(config)
            self.zero_stage = stage(engine_config)
            require_trackers(config.log)
        newest = None if fresh else self.checkpoints.newest()
        with together():
            if newest is not None:
                self._require_stage(*newest)
            self.datasets = open_datasets(config)
            student = load_student(config.student, config.seed)
            for caches in self.datasets.values():
                require_vocabulary(student, caches.documents)
                # else found out when all is done
                require_tokenizer(caches.documents, config.student, student.model.config)
            torch.manual_seed(config.seed)  # of projectors
            self.terms = terms_of(config, student, self.datasets)
            needs = needs_of(config, self.terms, self.datasets)
            self._require_lengths(student)
            self.batch_sources = self._batch_sources(needs)
            self._begin(student, needs)
            self.loader = StepLoader(
                self.batch_sources, config.data, rank=self.rank, ranks=self.ranks, pinned=torch.cuda.is_available()
            )
        # of the first dataset: others are gone through in as many steps, however long they are
        self.steps_per_epoch = self.loader.rows[DEFAULT_DATA] / config.data.batch_size
        self.steps = config.steps or math.ceil(config.epochs * self.steps_per_epoch)
        self.sources = from_first(lambda: self._sources(newest))
        self._start_engine(student, needs, engine_config, newest)
        # told to stop at a step that was to be validated, a run saves itself without that
        self._owes_validation = newest is not None and newest[1].held_out is None and self._is_validated(self.done)

    @property
    def first(self) -> bool:
        """Whether this rank is the one that talks and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """A line for the person."""
        if self.first:
            console.stderr.print(text)

    def train(self) -> None:
        """All steps that are left."""
        if self.done >= self.steps:
            return
        monitor = None
        if self.first:
            resolved = self.config.model_dump(mode="json")
            monitor = Monitor(self.out, self.config.log, resolved, self.done, self.steps)
        try:
            with self._listening():
                self._steps(monitor)
        finally:
            self.loader.close()
            if monitor is not None:
                monitor.close()

    def finish(self) -> Path:
        """Export the student, the best one if that is kept, else as it is now."""
        best = from_first(self.best_student.known) if self.config.checkpoint.best else None
        if best is None or best.step == self.done:
            state = whole_state(self.distiller.student.model, self.zero_stage)
        else:
            self.say(f"The best held-out loss was at step {best.step}: that one is exported.")
            with together():
                state = self.best_student.load() if self.first else None
        folder = self.out / STUDENT
        with together():
            if state is not None:
                documents = {name: caches.documents for name, caches in self.datasets.items()}
                export_run(state, self.distiller.student, self.config, documents, self._teacher(), self.out)
        self.say(f"The student is in {folder}, the curves are in {self.out / CURVES}.")
        return folder

    def _steps(self, monitor: Monitor | None) -> None:
        config = self.config
        if self._owes_validation:
            self._validate(monitor)
        began, tokens = time.monotonic(), 0
        for step, batches in enumerate(self._read(self.loader.training(self.done, self.steps)), self.done):
            result = self.stepper.step(step, batches, self._stop)
            self.done = step + 1
            self._require_finite(result.not_finite(self.config.precision == "fp16"))
            tokens += result.tokens
            last = self.done == self.steps
            if monitor is not None and (last or self.done % config.log.every == 0 or step == 0):
                now = time.monotonic()
                speed = {"tokens_per_second": tokens / (now - began), "memory_gb": memory_gb()}
                monitor.log(self._record(result) | speed)
                began, tokens = now, 0
            if monitor is not None:
                monitor.step(self.done)
            validates = self._is_validated(self.done) and (last or not result.stop)
            held_out = self._validate(monitor) if validates else None
            if self._is_saved(self.done) or last or result.stop:
                self._save(held_out)
            if result.stop and not last:
                raise Interrupted(f"Interrupted at step {self.done} of {self.steps}, which is saved in {self.out}.")

    def _read(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """A step's batches after the other's, `in_step`. Where they cannot be read any more, as of a cache that has been
        removed, what is done is saved."""
        try:
            yield from in_step(steps)
        except UserError:
            if self.done > self.saved:
                self._save(None)
                self.say(
                    f"{self.done} of {self.steps} steps are done, and saved in {self.out}: the same command goes on from there "
                    "as soon as what comes next can be read."
                )
            raise

    def _is_saved(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        every = self.config.checkpoint.every
        return every is not None and step % every == 0

    def _is_validated(self, step: int) -> bool:
        """Whether the rows held out are due after so many steps."""
        every = self.config.validate_every
        due = step == self.steps or (step % every == 0 if every else self._is_saved(step))
        return due and bool(self.config.data.held_out)

    def _validate(self, monitor: Monitor | None) -> float:
        """The loss on the rows held out; the student is kept where it is the lowest so far and that is wanted."""
        losses = self.stepper.validate(lambda: self._read(self.loader.validation()))
        self._require_finite(losses.not_finite(), "held out, ")
        if monitor is not None:
            monitor.log({"step": self.done, **losses.record("held_out_")})
        if self.config.checkpoint.best:
            best = from_first(self.best_student.known)
            if best is None or losses.total < best.held_out:
                state = whole_state(self.distiller.student.model, self.zero_stage)
                with together():
                    if state is not None:
                        self.best_student.keep(Best(step=self.done, held_out=losses.total), state)
        return losses.total

    def _require_finite(self, trouble: str | None, where: str = "") -> None:
        """Raises UserError for what is no finite number: nothing after it is worth a step, and nothing of it is saved."""
        if trouble is None:
            return
        good = list(self.checkpoints.complete())[-1:]
        with together():
            raise UserError(
                f"Step {self.done} of {self.steps}: {where}{trouble}. "
                + (f"The last good checkpoint is {good[0]}. " if good else "There is no checkpoint before it. ")
                + "The same config comes to the same end: try a lower `optim.lr` or a longer `optim.warmup`, in another "
                "`out` or with --overwrite."
            )

    def _save(self, held_out: float | None) -> None:
        if not all(gathered(finite(self.distiller))):  # a gradient was not, where the loss still was
            self._require_finite("a weight of the student or of a projector is no finite number")
        state = State(
            step=self.done, ranks=self.ranks, zero_stage=self.zero_stage, held_out=held_out, sources=self.sources
        )
        self.checkpoints.save(self.engine, state)
        self.saved = self.done

    def _record(self, result: StepResult) -> dict[str, float | int]:
        """What is logged of the step that was done last."""
        return {
            "step": self.done,
            "epoch": round(self.done / self.steps_per_epoch, 4),
            **result.losses.record(),
            "lr": result.lr,
            **({} if result.grad_norm is None else {"grad_norm": result.grad_norm}),
        }

    def _require_lengths(self, student: Student) -> None:
        for name, caches in self.datasets.items():
            rows = caches.documents.rows if self.config.teacher == "live" else caches.rows
            mine = (term for term in self.terms.values() if name in term.datasets)
            require_lengths(student, caches.documents, rows, any(term.needs().same_tokens for term in mine))

    def _begin(self, student: Student, needs: Mapping[str, TeacherNeeds]) -> None:
        """Let the terms look at data and models, once."""

        def batches(source: BatchSource, most: int) -> Iterator[Batch]:
            rows = range(min(most, source.rows))
            for first in rows[::BEGINNING_ROWS]:
                yield source.fetch(rows[first : first + BEGINNING_ROWS]).to("cpu")

        head = student.head
        own = Head(head.weight, head.bias, head.soft_cap, head.scale)
        teacher_head, embeddings = self._teacher_matrices(needs)
        for term in self.terms.values():
            data = term.datasets[0]
            beginning = Beginning(
                partial(batches, self.batch_sources[data]),
                own,
                teacher_head,
                embeddings.get(data),
                partial(self.datasets[data].command, teacher=self.config.teacher_model),
            )
            term.begin(beginning)

    def _teacher_matrices(self, needs: Mapping[str, TeacherNeeds]) -> tuple[Head | None, dict[str, Embeddings]]:
        """The teacher's output matrix, and its input embeddings of each dataset's tokens, as far as they are needed."""
        sources = self.batch_sources
        head = next((sources[name].head for name, wanted in needs.items() if wanted.head), None)
        return head, {name: sources[name].embeddings for name, wanted in needs.items() if wanted.embeddings}

    def _batch_sources(self, needs: Mapping[str, TeacherNeeds]) -> Mapping[str, CachedTeacher | LiveTeacher]:
        if self.config.teacher == "cached":
            return {name: CachedTeacher(caches, needs[name]) for name, caches in self.datasets.items()}
        assert self.config.teacher_model is not None
        model = placed(self.config.teacher_model, int(os.environ["LOCAL_RANK"]))
        return live_teachers(model, {name: (each.documents, needs[name]) for name, each in self.datasets.items()})

    def _teacher(self) -> dict[str, Any] | None:
        """Who taught, for the student's card; None if no term looks at a teacher."""
        needs = needs_of(self.config, self.terms, self.datasets)
        taught = [name for name, wanted in needs.items() if not wanted.nothing]
        if not taught:
            return None
        if self.config.teacher == "cached":
            return dict(self.datasets[taught[0]].teacher)
        assert self.config.teacher_model is not None
        return identity(self.config.teacher_model)

    def _require_stage(self, checkpoint: Path, state: State) -> None:
        """Raises `StateError` for a checkpoint that this run cannot load."""
        if state.zero_stage != self.zero_stage:
            raise StateError(
                f"{checkpoint} was saved under ZeRO stage {state.zero_stage}, not {self.zero_stage}; go on with that, or "
                "pass --overwrite."
            )

    def _sources(self, newest: tuple[Path, State] | None) -> Sources:
        """What this run learns from. Raises `StateError` if what it goes on from has learned from something else."""
        now = sources(self.config, self.datasets.values())
        if newest is not None:
            require_same_sources(newest[1].sources, now, self.out, newest[1].step)
        return now

    def _start_engine(
        self,
        student: Student,
        needs: Mapping[str, TeacherNeeds],
        engine_config: dict[str, Any],
        newest: tuple[Path, State] | None,
    ) -> None:
        config = self.config
        self.done = self.saved = 0 if newest is None else newest[1].step
        # without ZeRO every rank has everything, whatever their number
        universal = newest is not None and newest[1].ranks != self.ranks and self.zero_stage > 0
        if universal:
            engine_config["checkpoint"] = {"load_universal": True}
        self.distiller = Distiller(student, self.terms, None)
        parameters, roles = optimizer(
            student,
            nn.ModuleDict(self.terms).parameters(),
            config.optim,
            offloads(engine_config),
            fused=self.zero_stage == 0 and torch.cuda.is_available(),
        )
        self.engine = start(self.distiller, parameters, engine_config)
        self.stepper = Stepper(self.engine, roles, config, self.steps)
        head, embeddings = self._teacher_matrices(needs)
        device = self.engine.device
        whole = any(wanted.output_matrix for wanted in needs.values())
        self.distiller.set_teacher(
            head.to(device) if head is not None and whole else None,
            {name: each.to(device) for name, each in embeddings.items()},
            None if head is None else lambda tokens: head.of(tokens).to(device),
        )
        if newest is not None:
            self.checkpoints.load(self.engine, newest[0], universal)
            self.checkpoints.set_aside_after(newest[0])
            self.say(f"Going on from step {self.done} of {self.steps}.")
            if newest[1].ranks != self.ranks:
                self.say(
                    f"It was saved by {newest[1].ranks} rank(s): sums are in another order from here on, and dropout, if there "
                    "is any, draws other random numbers."
                )
        self._describe(student)

    def _describe(self, student: Student) -> None:
        count = sum(_numel(parameter) for parameter in student.parameters())
        learning = sum(_numel(each) for each in student.parameters() if each.requires_grad)
        projectors = sum(_numel(each) for each in nn.ModuleDict(self.terms).parameters())
        self.say(
            f"{student.architecture}, {student.depth} layers, {count / 1e6:.1f} M parameters"
            + (f", {learning / 1e6:.2f} M of them learning" if learning != count else "")
            + (f"; projectors {projectors / 1e6:.2f} M" if projectors else "")
            + f"; {'packed' if student.packed else 'padded'}; ZeRO {self.zero_stage} on {self.ranks} rank(s)"
        )
        rows = self.loader.rows
        several = len(rows) > 1
        told = ", ".join(f"{count} rows of `{name}`" for name, count in rows.items())
        self.say(
            (told if several else f"{rows[DEFAULT_DATA]} rows")
            + f", {self.config.data.batch_size} {'of each ' if several else ''}a step, {self.steps} steps; terms: "
            + ", ".join(f"{name} ({term.config.weight_at(0.0):g})" for name, term in self.terms.items())
        )
        for name in self.datasets:
            self._describe_data(name)

    def _describe_data(self, name: str) -> None:
        """What of a dataset is left out."""
        documents, source = self.datasets[name].documents, self.batch_sources[name]
        of_which = f" of `{name}`" if len(self.datasets) > 1 else ""
        if source.rows < documents.rows:
            self.say(
                f"The caches{of_which} hold the first {source.rows} of {documents.rows} rows: the others are not used."
            )
        alone = source.rows - self.loader.rows[name] - self.config.data.held_out
        if alone:
            self.say(f"{alone} of {source.rows} rows{of_which} are not used: no other row answers their prompt.")
        mine = [term for term in self.terms.values() if name in term.datasets]
        if any(term.needs().chunks for term in mine):
            self._describe_chunks(name)
        granularities = {pair.granularity for term in mine for pair in term.pairs}
        for granularity in sorted(granularities):
            left = documents.left_out(granularity)
            if left.either:
                self.say(
                    f"{left.either} of {left.units} {granularity}{of_which} are left out: {left.teacher} have no span on the "
                    f"teacher's side, {left.student} none on the student's."
                )

    def _describe_chunks(self, name: str) -> None:
        """Say where ends of chunks of a dataset are counted otherwise than in bytes."""
        rows = np.arange(min(self.batch_sources[name].rows, SPELLED_ROWS))
        spelled, texts = self.datasets[name].documents.spelled(rows)
        if spelled < texts:
            self.say(
                f"{texts - spelled} of {texts} learnt texts of the first {len(rows)} rows are not known to be what both sides' "
                "tokens spell, byte for byte (a tokenizer that normalises): their chunks end where visible characters do."
            )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """While it lasts, SIGTERM and SIGINT ask the run to stop after its step."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stop = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _numel(parameter: Any) -> int:
    """Also of a parameter that ZeRO-3 has partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
