"""Several datasets in one run: as many documents of each in a step, and partners together where they are joined."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UsageError
from schemas.training import DataConfig
from trainer.batches.batch import Batch
from trainer.batches.documents import Documents
from trainer.batches.joined import joined
from trainer.batches.loader import StepLoader
from trainer.batches.transfer import pack
from trainer.maths.ragged import pointers


class Asked(Documents):
    """Rows with prompts, and as many tokens as each asks for."""

    def __init__(self, prompts, folder="prepared"):
        self.folder = Path(folder)
        self._prompts = list(prompts)
        self.rows = len(self._prompts)

    def prompts(self):
        return iter(self._prompts)

    def lengths(self, _side):
        return np.array([2 + len(prompt) for prompt in self._prompts], dtype=np.int64)


def source_of(prompts, rows=None):
    """Gives batches of the rows' numbers alone."""

    def fetch(chosen):
        ids = torch.zeros(2 * len(chosen), dtype=torch.int64)
        token_rows, position_rows = pointers([2] * len(chosen)), pointers([1] * len(chosen))
        return Batch(torch.tensor(chosen), ids, token_rows, token_rows[:-1], position_rows, ids[::2])

    documents = Asked(prompts)
    return SimpleNamespace(documents=documents, rows=rows or len(documents), portable=False, fetch=fetch)


def loader_of(rank=0, ranks=1, *, prompts, **data):
    more = {name: {"dataset": name} for name in prompts if name != "default"}
    config = DataConfig.parse({"dataset": "d", "more": more, "batch_size": 4, "workers": 0} | data, "test")
    sources = {name: source_of(of_dataset) for name, of_dataset in prompts.items()}
    return StepLoader(sources, config, rank=rank, ranks=ranks, pinned=False)


def drawn(loader, steps=range(8)):
    """Rows of each step, by dataset."""
    return [rows_of(step) for step in loader.training(steps.start, steps.stop)]


def rows_of(step):
    rows = {}
    for batch in step:
        rows.setdefault(batch.data, []).extend(batch.documents.tolist())
    return rows


@given(st.lists(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=9), min_size=2, max_size=3))
def test_partners_answer_the_same_prompt_and_no_row_has_two(prompts):
    datasets = {f"set{number}": (Asked(each), len(each)) for number, each in enumerate(prompts)}
    expected = Counter(prompts[0])
    for each in prompts[1:]:
        expected &= Counter(each)
    del expected[""]
    if not expected:
        with pytest.raises(UsageError, match="have no prompt in common"):
            joined(datasets)
        return
    rows = list(joined(datasets).values())
    for of_dataset, asked in zip(rows, prompts, strict=True):
        assert len({*of_dataset.tolist()}) == len(of_dataset)
        assert [asked[row] for row in of_dataset] == [prompts[0][row] for row in rows[0]]
        for prompt, count in expected.items():  # the first of one with the first of the others
            assert [row for row in of_dataset if asked[row] == prompt] == [
                row for row, other in enumerate(asked) if other == prompt
            ][:count]
    assert Counter(prompts[0][row] for row in rows[0]) == expected
    assert rows[0].tolist() == sorted(rows[0])


def test_only_rows_that_caches_have_are_partners():
    datasets = {"one": (Asked("abc"), 3), "other": (Asked("cba"), 2)}
    assert {name: rows.tolist() for name, rows in joined(datasets).items()} == {"one": [1, 2], "other": [1, 0]}


def test_datasets_of_other_prompts_are_refused_in_one_sentence():
    datasets = {"one": (Asked(["Who?"], "mine"), 1), "other": (Asked(["What?"], "theirs"), 1)}
    with pytest.raises(UsageError) as error:
        joined(datasets)
    assert "mine and theirs have no prompt in common (row 0 of mine asks 'Who?', row 0 of theirs asks 'What?')" in str(
        error.value
    )


PROMPTS = {
    "default": [f"{'x' * (row % 5)}{row}" for row in range(13)],
    "student": [f"{'x' * (row % 5)}{row}" for row in (7, 3, 30, 0, 1, 2, 12, 4, 31, 8, 9, 10, 11)],
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_has_as_many_documents_of_each_and_partners_come_together(ranks, micro_batches):
    options = {"prompts": PROMPTS, "join": "prompt", "held_out": 3, "micro_batches": micro_batches}
    loaders = [loader_of(rank, ranks, **options) for rank in range(ranks)]
    assert loaders[0].rows == {"default": 8, "student": 8}
    whole = drawn(loader_of(prompts=PROMPTS, join="prompt", held_out=3))
    used = {name: set() for name in PROMPTS}
    for number, steps in enumerate(zip(*(loader.training(0, 8) for loader in loaders), strict=True)):
        for step in steps:  # the same datasets at the same time on every rank, as collectives need it
            assert [batch.data for batch in step] == ["default"] * micro_batches + ["student"] * micro_batches
        rows = rows_of([batch for step in steps for batch in step])
        assert {name: len(mine) for name, mine in rows.items()} == {"default": 4, "student": 4}
        assert {name: sorted(mine) for name, mine in rows.items()} == {
            name: sorted(mine) for name, mine in whole[number].items()
        }
        asked = [sorted(PROMPTS[name][row] for row in mine) for name, mine in rows.items()]
        assert asked[0] == asked[1]
        for name, mine in rows.items():
            used[name] |= {*mine}
    held_out = rows_of([batch for loader in loaders for step in loader.validation() for batch in step])
    asked = [sorted(PROMPTS[name][row] for row in mine) for name, mine in held_out.items()]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 3
    for name, mine in held_out.items():
        assert not used[name] & {*mine}


def test_without_a_join_each_goes_through_its_own_epochs():
    """Of unequal lengths: the shorter one begins anew while the longer one goes on."""
    prompts = {"default": ["a"] * 12, "short": ["b"] * 5}
    steps = drawn(loader_of(prompts=prompts), range(15))
    for name, rows in (("default", 12), ("short", 5)):
        stream = [row for step in steps for row in step[name]]
        epochs = [sorted(stream[first : first + rows]) for first in range(0, len(stream) - rows + 1, rows)]
        assert epochs == [[*range(rows)]] * (60 // rows)
    assert [sorted(step["default"]) for step in steps] == [
        sorted(step["default"]) for step in drawn(loader_of(prompts={"default": prompts["default"]}), range(15))
    ]  # what the first one gives does not depend on the others


def test_a_parcel_tells_which_dataset_a_batch_is_of():
    batches = [replace(source_of("ab").fetch([0, 1]), data=name) for name in ("default", "student")]
    assert [batch.data for batch in pack(batches).unpack()] == ["default", "student"]


def test_too_few_rows_to_hold_out_and_train_on_are_told():
    with pytest.raises(UsageError, match=r"`data\.held_out` is 5 of 5 rows"):
        loader_of(prompts={"default": ["a"] * 12, "short": ["b"] * 5}, held_out=5)
