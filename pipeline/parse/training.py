"""Training of a compact benepar `ChartParser` from bracketed trees (`make parser`).

The loss is `pipeline.parse.loss`; the sentences of each step are `pipeline.parse.examples`, prepared ahead by other
processes where the network runs on a GPU. There the products are TF32 and the search is the host's: at these sizes a
step is as long as it takes to launch it, and half precision would add launches.

A run saves its state and goes on from it after any interruption. What is scored and kept is the moving average of the
weights (Polyak & Juditsky 1992), which is worth more than it costs.
"""

import copy
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from pipeline.parse import model, network, scoring, teachers
from pipeline.parse.engine import Engine
from pipeline.parse.examples import Batch, Plan, Steps, examples_of
from pipeline.parse.gold import GoldSentence, read_sentences, read_text
from pipeline.parse.loss import loss_of
from pipeline.parse.recipe import VOCABULARY, Recipe, opened, quality, vocabularies
from pipeline.parse.treebank import GoldTree, gold_trees, words_of
from schemas.errors import ResourceError, UsageError, UserError
from schemas.files import make_folder, write_text, written
from trainer.models.memory import out_of_memory
from trainer.models.pickles import read_pickle

#: Averaged weights of the best evaluation.
BEST = "best.pt"
#: The same as a parser is stored, ready to be used while the run goes on.
STORED = "model"
STATE = "state.pt"
#: Words of a batch to each of its sentences: of long ones there are fewer in a batch.
WORDS_A_SENTENCE = 38
#: Batches that each of the processes prepares ahead.
BATCHES_AHEAD = 4
#: Subwords that are scored at once.
EVALUATED_AT_ONCE = {"cpu": 2048}
EVALUATED_AT_ONCE_ELSEWHERE = 16384


def evaluate(parser: network.Network, trees: Sequence[GoldTree], device: str = "cpu") -> scoring.Scores:
    """EVALB scores of `parser` on gold words."""
    training = parser.training
    parser.eval()
    engine = Engine(parser, EVALUATED_AT_ONCE.get(torch.device(device).type, EVALUATED_AT_ONCE_ELSEWHERE), device)
    constituents = engine.constituents([words_of(tree) for tree in trees])
    parser.train(training)
    return scoring.scores_of(scoring.word_pair(tree, found) for tree, found in zip(trees, constituents, strict=True))


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Within, float32 products on a GPU keep ten bits of the mantissa, and run several times as fast."""
    before = torch.get_float32_matmul_precision()
    if device.type != "cpu":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Run:
    """A recipe in work: its sentences, weights, their average, and how far it has come."""

    def __init__(self, recipe: Recipe) -> None:
        self.began = time.monotonic()
        self.recipe = recipe
        self.device = torch.device(recipe.device)
        make_folder(recipe.out)
        random.seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        fixed, rotating = self._read(recipe.train), self._read(recipe.rotating)
        text = [item for path in recipe.text for item in read_text(path, recipe.max_words)]
        self.dev = gold_trees(recipe.dev)
        labels, tags = vocabularies(recipe, fixed + rotating)
        self.parser = opened(recipe, labels, tags)
        self.steps = self._plan(fixed, rotating, text)
        if recipe.start is not None:
            self.parser.load_state_dict(read_pickle(recipe.start))
        self.parser.to(self.device).train()
        self.average = copy.deepcopy(self.parser).eval()
        self.weights, self.averages = list(self.parser.parameters()), list(self.average.parameters())
        encoder = list(self.parser.pretrained_model.parameters())
        charts = [p for name, p in self.parser.named_parameters() if not name.startswith("pretrained_model.")]
        self.peaks = (recipe.lr_encoder, recipe.lr_chart)
        self.optimizer = torch.optim.AdamW(
            [{"params": part, "lr": peak} for part, peak in zip((encoder, charts), self.peaks, strict=True)],
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.total = None if recipe.minutes is not None else self.steps.end(recipe.epochs - 1)
        self.done, self.best, self.evaluations_since = 0, -math.inf, 0
        self.saved = self.evaluated = time.monotonic()
        write_text(recipe.out / VOCABULARY, json.dumps({"labels": labels, "tags": tags}))
        self._restore()

    def _read(self, paths: Sequence[Path]) -> list[GoldSentence]:
        recipe = self.recipe
        return [item for path in paths for item in read_sentences(path, recipe.max_words, max(1, recipe.workers))]

    def _plan(self, fixed: list[GoldSentence], rotating: list[GoldSentence], text: list[GoldSentence]) -> Steps:
        """The run's sentences in their order, with the teachers' scores where there are any."""
        recipe = self.recipe
        always, others = (examples_of(self.parser, part) for part in (fixed, rotating))
        print(
            f"{len(always)} + {len(others)} trees, {len(text)} sentences without, {len(self.parser.label_vocab)} labels, "
            f"{len(self.parser.tag_vocab)} tags",
            flush=True,
        )
        examples = always + others + examples_of(self.parser, text)
        self.scores = None
        if recipe.teachers:
            self.scores = teachers.span_scores(recipe.teachers, examples, self.parser.label_vocab, self.device)
            examples = teachers.with_trees(examples, self.scores)
            print(f"{len(recipe.teachers)} teachers scored {len(self.scores)} spans", flush=True)
        plan = Plan(
            fixed=len(always),
            rotating=recipe.rotating_trees,
            long_words=recipe.long_words,
            batch_sentences=recipe.batch_sentences,
            batch_words=recipe.batch_sentences * WORDS_A_SENTENCE,
            noise=recipe.noise,
            seed=recipe.seed,
        )
        return Steps(self.parser, examples, plan)

    @property
    def fraction(self) -> float:
        """How much of the run is over, from 0 to 1."""
        if self.total is not None:
            return self.done / self.total
        assert self.recipe.minutes is not None
        return min(1.0, (time.monotonic() - self.began) / (60 * self.recipe.minutes))

    def go(self) -> None:
        """To the end, or to where patience ends; what was learnt is scored on dev at least once.

        Raises `UsageError` where the time was over before the first step.
        """
        if self.fraction < 1.0:
            self._learn()
        if not self.done:
            seconds = time.monotonic() - self.began
            raise UsageError(
                f"The time of --minutes {self.recipe.minutes:g} was over before the first step, for all that comes before it "
                f"(trees, teachers' scores) took {seconds:.1f} s: give more --minutes."
            )
        if self.best == -math.inf:  # interrupted before an evaluation was due, and now the time is over
            self.keep_if_best(self.steps.epoch_of(self.done - 1))
            self.save()

    def _learn(self) -> None:
        """Steps up to the last one, or to where patience ends."""
        recipe = self.recipe
        loader = DataLoader(
            self.steps,
            sampler=range(self.done, self.total if self.total is not None else sys.maxsize),
            batch_size=None,
            num_workers=recipe.workers,
            prefetch_factor=BATCHES_AHEAD if recipe.workers else None,
            generator=torch.Generator(),  # it would draw from the state of dropout otherwise
        )
        began, sentences, running = time.monotonic(), 0, 0.0
        with tf32_products(self.device):
            for batch in loader:
                epoch = self.steps.epoch_of(self.done)
                loss = self.step(batch)
                sentences, running = sentences + len(batch.lengths), 0.98 * running + 0.02 * loss
                if self.done % 50 == 0:
                    rate = sentences / (time.monotonic() - began)
                    of = f"/{self.total}" if self.total is not None else f", {self.fraction:.0%}"
                    print(
                        f"epoch {epoch + 1} step {self.done}{of} loss {running:.3f} {rate:.1f} sentences/s", flush=True
                    )
                last = self.done == self.total or (self.total is None and self.fraction >= 1.0)
                if last or self._is_evaluated(epoch):
                    self.keep_if_best(epoch)
                    self.save()
                elif self._is_due(self.saved, recipe.save_every_s):
                    self.save()
                if last:
                    break
                if self.evaluations_since >= recipe.patience:
                    print(f"nothing better in {recipe.patience} evaluations, stopped", flush=True)
                    break

    def _is_evaluated(self, epoch: int) -> bool:
        """Whether dev is scored now: by the clock if the recipe says so, else at the end of the epoch."""
        seconds = self.recipe.evaluate_every_s
        return self._is_due(self.evaluated, seconds) if seconds else self.done == self.steps.end(epoch)

    @staticmethod
    def _is_due(last: float, seconds: float) -> bool:
        return time.monotonic() - last >= seconds

    def step(self, batch: Batch) -> float:
        """One update of the weights and of their average; returns the loss."""
        recipe = self.recipe
        factor = min((self.done + 1) / recipe.warmup_steps, 1 - self.fraction)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        batch = batch.to(self.device)
        teacher = None if self.scores is None else self.scores.index_select(0, batch.places)
        loss = loss_of(self.parser, batch, teacher, recipe.distil_weight, recipe.temperature)
        if not math.isfinite(value := float(loss.detach())):
            of = f" of {self.total}" if self.total is not None else ""
            raise UserError(
                f"Step {self.done + 1}{of}: the loss is {value}, no finite number. Begin anew with a lower --lr-encoder "
                "and --lr-chart, and another --state."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights, recipe.clip)
        self.optimizer.step()
        self.done += 1
        # the first steps weigh less in the average, so that it forgets where it began
        rate = max(1 - recipe.averaging, 10 / (9 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, rate)
        return value

    def keep_if_best(self, epoch: int) -> None:
        """Score the average on dev, and keep it if nothing was better so far."""
        recipe = self.recipe
        result = evaluate(self.average, self.dev, recipe.device)
        self.evaluations_since += 1
        self.evaluated = time.monotonic()
        print(f"epoch {epoch + 1}: {json.dumps(result.as_dict())}", flush=True)
        if (reached := quality(result, recipe.goals)) > self.best:
            self.best, self.evaluations_since = reached, 0
            with written(recipe.out / BEST) as stream:
                torch.save(self.average.state_dict(), stream)
            model.save(self.average, recipe.encoder, recipe.out / STORED)

    def save(self) -> None:
        """The state, from which `_restore` goes on."""
        state = {
            "parser": self.parser.state_dict(),
            "averaged": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "done": self.done,
            "best": self.best,
            "evaluations_since": self.evaluations_since,
            "seconds": time.monotonic() - self.began,
        }
        with written(self.recipe.out / STATE) as stream:
            torch.save(state, stream)
        self.saved = time.monotonic()

    def _restore(self) -> None:
        """Go on from the saved state, if there is one."""
        if not (self.recipe.out / STATE).exists():
            return
        state = read_pickle(self.recipe.out / STATE)
        self.parser.load_state_dict(state["parser"])
        self.average.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["device_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"], self.device)
        self.done, self.best = state["done"], state["best"]
        self.evaluations_since = state["evaluations_since"]
        self.began -= state["seconds"]
        print(f"going on from step {self.done}", flush=True)


def train(recipe: Recipe) -> Path:
    """Run the recipe to its end, from its saved state if there is one; returns the folder with the best weights.

    Raises `ResourceError` where memory runs out.
    """
    try:
        Run(recipe).go()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"Out of memory on {recipe.device} with --batch {recipe.batch_sentences}. Free some and run the same command again, "
            f"which goes on from what is saved in {recipe.out}; or begin anew with a smaller --batch and another --state."
        ) from error
    return recipe.out


def export(recipe: Recipe, folder: Path) -> scoring.Scores:
    """Store the run's best weights at `folder` as they ship, and score that stored model on the dev trees."""
    names = json.loads((recipe.out / VOCABULARY).read_text(encoding="utf-8"))
    parser = opened(recipe, names["labels"], names["tags"])
    parser.load_state_dict(read_pickle(recipe.out / BEST))
    model.save(parser, recipe.encoder, folder)
    return evaluate(model.load(str(folder)).network, gold_trees(recipe.dev), recipe.device)
