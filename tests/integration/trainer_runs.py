"""Several runs of the trainer in one process of each rank: what `trainer/train.py` does, without starting anew for each.

deepspeed --num_gpus 2 tests/integration/trainer_runs.py CONFIG.yaml …
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from trainer.settings import load_config
    from trainer.train import start_ranks

    files = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    ranks = [argument.partition("=")[2] for argument in sys.argv[1:] if argument.startswith("--local_rank")]
    start_ranks(int(ranks[0]) if ranks else 0)
    import torch

    from trainer.run import train

    torch.set_num_threads(1)
    for file in files:
        train(load_config(file, []), overwrite=False)
