"""Several runs of the trainer in one process of each rank: what `trainer/train.py` does, without starting anew for each.

deepspeed --num_gpus 2 tests/trainer/runs.py CONFIG.yaml …
python tests/trainer/runs.py --refused CONFIG.yaml …      # the exit code of each, a line of JSON beside its file
"""

import json
import sys
from contextlib import redirect_stderr
from pathlib import Path


def refused(files):
    """The command itself, once for each config, none of which can be run; keeps what it says and its exit code."""
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
        train(load_config(file, []), overwrite=False)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    flags = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    configs = [Path(argument) for argument in sys.argv[1:] if argument not in flags]
    if flags == ["--refused"]:
        refused(configs)
    else:
        ranks = [flag.partition("=")[2] for flag in flags if flag.startswith("--local_rank")]
        finished(configs, int(ranks[0]) if ranks else 0)
