"""Several runs of the trainer in one process of each rank: what `trainer/train.py` does, without starting anew for each.

deepspeed --num_gpus 2 tests/trainer/runs.py CONFIG.yaml …
python tests/trainer/runs.py --told CONFIG.yaml …      # exit code and standard error of each, beside its file
"""

import json
import sys
from contextlib import redirect_stderr
from pathlib import Path

#: Name of the config that `failed` runs.
FAILS = "fails"


def told(files):
    """The command itself, once for each config; keeps what it says and its exit code."""
    from trainer import train

    for file in files:
        with file.with_suffix(".err").open("w", encoding="utf-8") as said, redirect_stderr(said):
            sys.argv = ["train.py", "--config", str(file)]
            try:
                train.main()
                code = 0
            except SystemExit as exit_:
                code = exit_.code
        file.with_suffix(".code").write_text(json.dumps(code))


def finished(files, local_rank):
    """Runs, from first step to exported student."""
    from trainer.config import load_config
    from trainer.train import start_ranks

    start_ranks(local_rank)
    import torch

    from trainer.run import train

    torch.set_num_threads(1)
    for file in files:
        if file.stem == FAILS:
            failed(file)
        else:
            train(load_config(file, []), overwrite=False)


def failed(file):
    """A run whose last rank cannot read one of its batches; what each rank raises is kept beside its file."""
    import torch.distributed as dist

    from schemas.errors import UserError
    from trainer.config import load_config
    from trainer.run import train
    from trainer.teacher.cached import CachedTeacher

    whole, rank, fetched = CachedTeacher.fetch, dist.get_rank(), []

    def fetch(self, rows):
        fetched.append(rows)
        if rank == dist.get_world_size() - 1 and len(fetched) == 3:
            raise UserError(f"rank {rank} cannot read its third batch")
        return whole(self, rows)

    CachedTeacher.fetch = fetch
    try:
        train(load_config(file, []), overwrite=False)
    except UserError as error:
        file.with_suffix(f".{rank}.err").write_text(str(error), encoding="utf-8")
    finally:
        CachedTeacher.fetch = whole


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    flags = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    configs = [Path(argument) for argument in sys.argv[1:] if argument not in flags]
    if flags == ["--told"]:
        told(configs)
    else:
        ranks = [flag.partition("=")[2] for flag in flags if flag.startswith("--local_rank")]
        finished(configs, int(ranks[0]) if ranks else 0)
