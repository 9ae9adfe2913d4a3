"""Which rank a process is, as torchrun and srun tell it."""

import pytest

from pipeline.shards.ranks import ALONE, Rank, rank_of
from schemas.errors import UsageError

TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}
#: What stands in a batch script, and nobody has started ranks.
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "7", "SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "2(x3),1"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, ALONE),
        (TORCHRUN, Rank(9, 16, 1, 8)),
        (SRUN, Rank(5, 7, 1, 2)),
        (SRUN | {"SLURM_PROCID": "6", "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}, Rank(6, 7, 0, 1)),
        (SRUN | {"SLURM_CPU_BIND_TYPE": "mask_cpu:"}, Rank(5, 7, 1, 1)),
        (SRUN | {"SLURM_CPU_BIND_TYPE": "none"}, Rank(5, 7, 1, 2)),
        (SRUN | TORCHRUN, Rank(9, 16, 1, 8)),
        (BATCH, ALONE),
    ],
)
def test_the_rank_is_as_it_is_told(environment, rank):
    assert rank_of(environment) == rank


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (TORCHRUN | {"RANK": "x"}, "RANK is 'x'"),
        (TORCHRUN | {"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        (TORCHRUN | {"WORLD_SIZE": "9"}, "rank 9 of 9: ranks are 0 to 8"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS is ''"),
    ],
)
def test_what_is_no_rank_is_refused(environment, told):
    with pytest.raises(UsageError, match=told):
        rank_of(environment)


def test_every_shard_is_of_one_rank():
    ranks = [Rank(number, 3) for number in range(3)]
    assert [[rank.number for rank in ranks if rank.takes(shard)] for shard in range(5)] == [[0], [1], [2], [0], [1]]


def test_one_rank_alone_reads_standard_input(command, monkeypatch, tmp_path):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    sides = ["--teacher", "embedded:sentencepiece-bpe", "--student", "embedded:bytelevel-bpe"]
    for arguments in (["parse", "-", *sides], ["generate", "-", "--model", "embedded:teacher"]):
        code, _, err = command(*arguments, "--out", tmp_path / "out.jsonl")
        assert (code, "there are 16: name a file" in err) == (2, True), err
