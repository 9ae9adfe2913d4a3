"""One validation: a plain function of weights and documents, which holds no more of them than it is given at once."""

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from schemas.training import TrainConfig
from trainer.batches.batch import Batch
from trainer.maths.ragged import pointers
from trainer.objectives.base import Options
from trainer.step import Stepper

LENGTHS = (5, 3, 8, 2, 9, 4, 6)


@pytest.fixture(autouse=True, scope="module")
def only_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Engine:
    """The mean of token ids, and of their squares with half the weight, as an engine that is its own model."""

    device = torch.device("cpu")
    counts_by_model = False

    def __init__(self):
        self.module = self
        self.progress, self.seen = 0.3, set()  # of the run, and where batches were computed
        self.terms = {"mean": SimpleNamespace(config=Options()), "square": SimpleNamespace(config=Options(weight=0.5))}

    def denominators(self, batch):
        return {name: torch.tensor([float(len(batch.ids))], dtype=torch.float64) for name in self.terms}

    def eval(self):
        pass

    def begin_validation(self):
        self.progress = 1.0

    def __call__(self, batch, denominators, weights):
        self.seen.add(self.progress)
        ids = batch.ids.double()
        values = torch.stack([(ids.sum() / denominators["mean"])[0], (ids.square().sum() / denominators["square"])[0]])
        return values @ torch.tensor([*weights.values()], dtype=torch.float64), values


def stepper():
    config = TrainConfig.parse({"student": {"model": "s"}, "data": {"dataset": "d"}, "objectives": {"ce": {}}}, "")
    return Stepper(Engine(), [], config, steps=10)


def batch(number):
    ids = torch.arange(LENGTHS[number]) + number
    return Batch(
        torch.tensor([number]), ids, pointers([len(ids)]), torch.arange(len(ids) - 1), pointers([len(ids) - 1]), ids[1:]
    )


def test_the_loss_held_out_does_not_depend_on_the_portions():
    numbers = range(len(LENGTHS))
    ids = torch.cat([batch(number).ids for number in numbers]).double()
    expected = {"mean": float(ids.mean()), "square": float(ids.square().mean())}
    for portions in ([[*numbers]], [[number] for number in numbers], [[0, 1, 2], [3], [4, 5, 6]]):
        made = stepper()
        losses = made.validate(lambda portions=portions: ([batch(each) for each in one] for one in portions))
        assert made.engine.seen == {1.0}  # nor on how far the run is
        assert losses.terms == pytest.approx(expected)
        assert losses.total == pytest.approx(expected["mean"] + expected["square"] / 2)


def test_validation_holds_one_portion_at_a_time_and_asks_for_denominators_once():
    alive, most, given = set(), 0, 0

    def portions():
        nonlocal most, given
        given += 1
        for number in range(len(LENGTHS)):
            document = batch(number)
            alive.add(id(document))
            weakref.finalize(document, alive.discard, id(document))
            most = max(most, len(alive))
            portion = [document]
            del document
            yield portion
            del portion

    made = stepper()
    first = made.validate(portions)
    assert given == 2
    assert made.validate(portions) == first
    assert given == 3
    made.engine.counts_by_model = True  # so that what was counted before is nothing worth
    assert made.validate(portions) == first
    assert given == 5
    assert most <= 2  # the one that is done with, until the next is there
    assert not alive
