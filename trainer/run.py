"""A training run: assembled from its config, and stepped from its last checkpoint to the exported student.

A step is the same whatever it is dealt to: denominators of its terms are added up over micro-batches and ranks before the
first of them is computed (`trainer.objectives.base`), its rows follow from its number (`trainer.batches.loader`), and so do the
random numbers of dropout for every micro-batch. So the number of steps done, and what DeepSpeed saves, is the whole state.
"""

import math
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor, nn

from schemas import console
from schemas.errors import StateError, UsageError
from schemas.training import PairConfig, TrainConfig
from trainer.batches.batch import Batch
from trainer.batches.documents import Documents
from trainer.batches.loader import StepLoader
from trainer.config import require_same
from trainer.engine.checkpoint import FOLDER, Checkpoints, State
from trainer.engine.monitor import CURVES, METRICS, TENSORBOARD, Monitor, memory_gb
from trainer.engine.optimizer import optimizer, rate, set_rates
from trainer.engine.zero import deepspeed_config, offloads, stage
from trainer.models.head import Head
from trainer.models.hub import locate
from trainer.models.loading import description, placed
from trainer.objectives import build
from trainer.objectives.base import Objective, Setting
from trainer.student.distiller import Distiller
from trainer.student.export import export_run, student_tokenizer
from trainer.student.model import Student, load_student
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.live import LiveTeacher
from trainer.teacher.needs import teacher_needs
from trainer.teacher.pairing import automatic_pairs

CONFIG: Final = "config.yaml"
STUDENT: Final = "student"


class Interrupted(Exception):  # noqa: N818  # no error: what was done is saved
    """The run was told to stop, and has saved itself."""


def train(config: TrainConfig, overwrite: bool) -> Path:
    """Train, or go on training, and return the exported student's folder. Every rank calls it.

    `overwrite`: forget what is in the output folder. Raises `UserError` and its kin for configs, data and models that do
    not fit; `Interrupted` after SIGTERM or SIGINT, when the state is saved.
    """
    run = Run(config, overwrite)
    run.train()
    return run.finish()


class Run:
    """Everything a run holds in memory."""

    done: int  # steps
    engine: Any  # deepspeed.DeepSpeedEngine
    zero_stage: int

    def __init__(self, config: TrainConfig, overwrite: bool) -> None:
        self.config = config
        self.out = Path(config.out)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._prepare_folder(overwrite)
        self.checkpoints = Checkpoints(self.out, config.checkpoint.keep, config.checkpoint.best)
        self.documents = Documents(config.data.dataset, config.data.limit)
        self.caches = Caches(config.data.caches, self.documents)
        student = load_student(config.student, config.seed)
        self._require_vocabulary(student)
        torch.manual_seed(config.seed)  # of projectors
        self.terms = self._terms(student)
        pairs = [pair for term in self.terms.values() for pair in getattr(term, "pairs", ())]
        wanted = teacher_needs(
            {name: term.needs() for name, term in self.terms.items()}, pairs, config.weights, self.documents
        )
        self.source: CachedTeacher | LiveTeacher
        if config.teacher == "live":
            assert config.teacher_model is not None
            self.source = LiveTeacher(
                placed(config.teacher_model, int(os.environ["LOCAL_RANK"])), self.documents, wanted
            )
        else:
            self.source = CachedTeacher(self.caches, wanted)
        student_tokenizer(self.documents.manifest)  # one that has gone would else be missed only when all is done
        self.loader = StepLoader(
            self.source, config.data, rank=self.rank, ranks=self.ranks, pinned=torch.cuda.is_available()
        )
        epoch = self.loader.rows / config.data.batch_size
        self.steps_per_epoch = epoch
        self.steps = config.steps or math.ceil(config.epochs * epoch)
        self._stop = False
        self._start_engine(student, wanted.final)

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
            if monitor is not None:
                monitor.close()

    def finish(self) -> Path:
        """Export the student, of the best checkpoint if those are kept, else as it is now."""
        chosen = self.checkpoints.best() if self.config.checkpoint.best else None
        if chosen is not None and chosen[1].step != self.done:
            self.say(f"The best held-out loss was at step {chosen[1].step}: that one is exported.")
            self.checkpoints.load(self.engine, chosen[0], universal=False)
        state = self._full_state()
        folder = self.out / STUDENT
        if self.first:
            assert state is not None
            export_run(state, self.distiller.student, self.config, self.documents, self._teacher_record(), self.out)
            self.say(f"The student is in {folder}, the curves are in {self.out / CURVES}.")
        dist.barrier()
        return folder

    def _steps(self, monitor: Monitor | None) -> None:
        config = self.config
        began, tokens = time.monotonic(), 0
        for step, batches in enumerate(self.loader.training(self.done, self.steps), self.done):
            record = self.step(step, batches)
            self.done = step + 1
            tokens += int(record.pop("tokens"))
            last = self.done == self.steps
            stopping = bool(record.pop("stop"))
            logged = last or self.done % config.log.every == 0 or step == 0
            if monitor is not None and logged:
                now = time.monotonic()
                record |= {"tokens_per_second": tokens / (now - began), "memory_gb": memory_gb()}
                monitor.log(record)
                began, tokens = now, 0
            if monitor is not None:
                monitor.step(self.done)
            due = config.checkpoint.every is not None and self.done % config.checkpoint.every == 0
            validate = last or (self.done % config.validate_every == 0 if config.validate_every else due)
            held_out = None
            if validate and config.data.held_out and not stopping:
                values = self.validate()
                held_out = values["held_out_loss"]
                if monitor is not None:
                    monitor.log({"step": self.done, **values})
            if due or last or stopping:
                self.checkpoints.save(self.engine, State(self.done, self.ranks, self.zero_stage, held_out))
            if stopping and not last:
                raise Interrupted(f"Interrupted at step {self.done} of {self.steps}, which is saved in {self.out}.")

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, float | int]:
        """One optimizer step on this rank's micro-batches; what it gave, over all ranks."""
        progress = step / self.steps
        weights = {name: term.config.weight_at(progress) for name, term in self.terms.items()}
        set_rates(self.engine.optimizer.param_groups, self.roles, rate(self.config.optim, step, self.steps))
        tokens = float(sum(len(batch.ids) for batch in batches))
        denominators, (tokens, stop) = self._denominators(batches, [tokens, float(self._stop)])
        values = torch.zeros(len(self.terms), device=self.engine.device)
        self.engine.train()
        for number, batch in enumerate(batches):
            self._seed(step, number)
            loss, terms = self.engine(batch.to(self.engine.device), denominators, weights)
            # DeepSpeed takes the mean over ranks, and shares of a step add up
            self.engine.backward(loss * self.ranks, scale_wrt_gas=False)
            self.engine.step()
            values += terms
        by_name = self._summed(values)
        total = sum(weights[name] * value for name, value in by_name.items())
        norm = self.engine.get_global_grad_norm()  # not every stage tells
        return {
            "step": step + 1,
            "epoch": round((step + 1) / self.steps_per_epoch, 4),
            "loss": total,
            **by_name,
            "lr": self.config.optim.lr * rate(self.config.optim, step, self.steps),
            **({} if norm is None else {"grad_norm": float(norm)}),
            "tokens": tokens,
            "stop": stop,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss, with its final weights, and its terms on the rows held out; a plain function of weights and rows."""
        batches = [batch for step in self.loader.validation() for batch in step]
        denominators, _ = self._denominators(batches, [])
        weights = {name: term.config.weight_at(1.0) for name, term in self.terms.items()}
        values = torch.zeros(len(self.terms), device=self.engine.device)
        self.engine.eval()
        for batch in batches:
            _, terms = self.engine(batch.to(self.engine.device), denominators, weights)
            values += terms
        by_name = self._summed(values)
        found = {"held_out_loss": sum(weights[name] * value for name, value in by_name.items())}
        return found | {f"held_out_{name}": value for name, value in by_name.items()}

    def _denominators(
        self, batches: Sequence[Batch], also: Sequence[float]
    ) -> tuple[dict[str, Float64[Tensor, " parts"]], list[float]]:
        """Of every term over all micro-batches of all ranks; and other numbers added up over ranks on the way."""
        each = [self.distiller.denominators(batch) for batch in batches]
        total = {name: torch.stack([one[name] for one in each]).sum(0) for name in self.terms}
        flat = torch.cat([*total.values(), torch.tensor([*also], dtype=torch.float64)])
        if self.ranks > 1:
            flat = flat.to(self.engine.device)
            dist.all_reduce(flat)
            flat = flat.cpu()
        *parts, rest = torch.split(flat, [*(len(part) for part in total.values()), len(also)])
        return dict(zip(total, parts, strict=True)), rest.tolist()

    def _summed(self, values: Tensor) -> dict[str, float]:
        if self.ranks > 1:
            dist.all_reduce(values)
        return dict(zip(self.terms, values.tolist(), strict=True))

    def _seed(self, step: int, micro_batch: int) -> None:
        """Random numbers of dropout follow from where in the run they are drawn."""
        sequence = np.random.SeedSequence([self.config.seed, step, self.rank, micro_batch])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)

    def _terms(self, student: Student) -> dict[str, Objective]:
        shape = self._teacher_shape()
        pairs: tuple[PairConfig, ...] = self.config.layers or ()
        if self.config.layers is None and shape is not None and self.caches.layers:
            pairs = automatic_pairs(self.caches.layers, student.depth, shape[0])
        for pair in pairs:
            if pair.student > student.depth:
                raise UsageError(
                    f"`layers`: the student has layers 0 (embeddings) to {student.depth}, not {pair.student}."
                )
            if shape is not None and pair.teacher > shape[0]:
                raise UsageError(f"`layers`: the teacher has layers 0 (embeddings) to {shape[0]}, not {pair.teacher}.")
        setting = Setting(
            pairs=tuple(sorted(pairs, key=lambda pair: pair.student)),
            student_size=student.hidden_size,
            teacher_size=shape[1] if shape is not None else student.hidden_size,
            student_weights=self.config.weights,
            student_last=(student.depth, student.head.in_features),
            teacher_last=None if shape is None else (shape[0], shape[2]),
        )
        return build(self.config.objectives, setting, "objectives")

    def _teacher_shape(self) -> tuple[int, int, int] | None:
        """The teacher's depth, hidden size and features of its last hidden states; None where there is none."""
        if self.config.teacher == "live":
            model = self.config.teacher_model
            assert model is not None
            described = description(model, locate(model), f"The teacher {model.model!r}")
            text = described.get_text_config(decoder=True)
            last = getattr(text, "word_embed_proj_dim", text.hidden_size)  # OPT's
            return int(text.num_hidden_layers), int(text.hidden_size), int(last)
        if not self.caches.caches:
            return None
        teacher = self.caches.teacher
        size = int(teacher["hidden_size"])
        return int(teacher["depth"]), size, int(teacher.get("final_size", size))

    def _teacher_record(self) -> dict[str, Any] | None:
        """Who the teacher is, for the student's card."""
        if self.caches.caches:
            return dict(self.caches.teacher)
        return None if self.config.teacher_model is None else {"name": self.config.teacher_model.model}

    def _require_vocabulary(self, student: Student) -> None:
        if self.documents.largest_student_id >= student.vocab_size:
            raise UsageError(
                f"{self.documents.folder} has the student token {self.documents.largest_student_id}, and the student knows "
                f"{student.vocab_size} tokens: it was prepared for another tokenizer. "
                f"`mta-prep align {self.documents.folder} --student TOKENIZER -o NEW` prepares it for this one."
            )

    def _start_engine(self, student: Student, logits: bool) -> None:
        config = self.config
        newest = self.checkpoints.newest()
        self.done = 0 if newest is None else newest[1].step
        values = deepspeed_config(config)
        self.zero_stage = stage(values)
        # without ZeRO every rank has everything, whatever their number
        universal = newest is not None and newest[1].ranks != self.ranks and self.zero_stage > 0
        if universal:
            values["checkpoint"] = {"load_universal": True}
        if newest is not None and newest[1].zero_stage != self.zero_stage:
            raise StateError(
                f"{newest[0]} was saved under ZeRO stage {newest[1].zero_stage}, not {self.zero_stage}; go on with that, or "
                "pass --overwrite."
            )
        self.distiller = Distiller(student, self.terms, None)
        parameters, self.roles = optimizer(
            student, nn.ModuleDict(self.terms).parameters(), config.optim, offloads(values)
        )
        exact = {name: buffer.clone() for name, buffer in self.distiller.named_buffers() if buffer.is_floating_point()}
        engine, *_ = deepspeed.initialize(model=self.distiller, optimizer=parameters, config=values)
        self.engine = engine
        for name, buffer in exact.items():
            # half precision is for weights: frequencies of rotary positions must not be rounded
            owner, _, key = name.rpartition(".")
            module = self.distiller.get_submodule(owner)
            module.register_buffer(
                key, buffer.to(self.engine.device), persistent=key not in module._non_persistent_buffers_set
            )
        if logits:
            self.distiller.teacher_head = _on(self.source.head, self.engine.device)
        if newest is not None:
            self.checkpoints.load(engine, newest[0], universal)
            self.say(f"Going on from step {self.done} of {self.steps}.")
        self._describe(student)

    def _describe(self, student: Student) -> None:
        count = sum(_numel(parameter) for parameter in student.parameters())
        learning = sum(_numel(each) for each in student.parameters() if each.requires_grad)
        projectors = sum(_numel(each) for each in nn.ModuleDict(self.terms).parameters())
        self.say(
            f"{student.architecture}, {student.depth} layers, {count / 1e6:.1f} M parameters"
            + (f", {learning / 1e6:.1f} M of them learning" if learning != count else "")
            + (f"; projectors {projectors / 1e6:.2f} M" if projectors else "")
            + f"; {'packed' if student.packed else 'padded'}; ZeRO {self.zero_stage} on {self.ranks} rank(s)"
        )
        self.say(
            f"{self.loader.rows} rows, {self.config.data.batch_size} a step, {self.steps} steps; terms: "
            + ", ".join(f"{name} ({term.config.weight_at(0):g})" for name, term in self.terms.items())
        )
        if self.source.rows < self.documents.rows:
            self.say(
                f"The caches hold the first {self.source.rows} of {self.documents.rows} rows: the others are not used."
            )
        granularities = {pair.granularity for term in self.terms.values() for pair in getattr(term, "pairs", ())}
        for granularity in sorted(granularities):
            left = self.documents.left_out(granularity)
            if left.either:
                self.say(
                    f"{left.either} of {left.units} {granularity} are left out: {left.teacher} have no span on the "
                    f"teacher's side, {left.student} none on the student's."
                )

    def _prepare_folder(self, overwrite: bool) -> None:
        path = self.out / CONFIG
        if self.first:
            if overwrite:
                for name in (FOLDER, STUDENT, TENSORBOARD):
                    shutil.rmtree(self.out / name, ignore_errors=True)
                for name in (CONFIG, METRICS, CURVES):
                    (self.out / name).unlink(missing_ok=True)
            self.out.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        if path.is_file():
            require_same(path, self.config)
        dist.barrier()
        if self.first:
            path.write_text(self.config.to_yaml(), encoding="utf-8")

    def _full_state(self) -> dict[str, Tensor] | None:
        """Every tensor of the student's model, whole, on the CPU; None but on the first rank."""
        found: dict[str, Tensor] = {}
        model = self.distiller.student.model
        for name, parameter in model.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage == 3):
                if self.first:
                    found[name] = parameter.detach().cpu().clone()
        persistent = model.state_dict(keep_vars=True).keys()
        for name, buffer in model.named_buffers():
            if self.first and name in persistent:
                found[name] = buffer.detach().cpu().clone()
        return found if self.first else None

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


def _on(head: Head, device: torch.device) -> Head:
    bias = None if head.bias is None else head.bias.to(device)
    return Head(head.weight.to(device), bias, head.soft_cap, head.scale)


def _numel(parameter: Any) -> int:
    """Also of a parameter that ZeRO-3 has partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
