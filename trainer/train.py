"""Train a student from a prepared dataset and a teacher cache.

    deepspeed [--num_gpus N | --hostfile …] trainer/train.py --config trainer/configs/mta.yaml [--set optim.lr=2e-4 …]
    python trainer/train.py --config …                      # one device, no launcher

The same command goes on after an interruption. Exit codes are those of every command (`schemas.errors.Exit`).
"""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    # as a script, this folder would come first, and its file names before those of other packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from schemas import console
from schemas.errors import Exit, UserError

app = typer.Typer(add_completion=False)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="The training config, YAML; see trainer/configs.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as optim.lr=2e-4.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read dataset and caches through first, and compare every checksum.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Begin anew in an output folder that has a run in it.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Train a student from a prepared dataset and a teacher cache, or with the teacher live."""
    from trainer.config import load_config

    settings = load_config(config, [*(set_ or []), *(["data.verify=true"] if verify else [])])
    start_ranks(local_rank)
    from trainer.run import Interrupted  # slow to import: configs are checked before
    from trainer.run import train as run

    try:
        run(settings, overwrite)
    except Interrupted as stopped:
        if os.environ["RANK"] == "0":
            console.stderr.print(str(stopped))
        raise typer.Exit(Exit.INTERRUPTED) from None
    except UserError as error:
        if os.environ["RANK"] != "0":  # every rank finds the same; one says it
            raise typer.Exit(error.exit_code) from None
        raise


def start_ranks(local_rank: int) -> None:
    """Make this process a rank of a group, also without a launcher: then it is the only one."""
    os.environ.setdefault("DS_LOG_LEVEL", "warning")  # it tells of itself on every rank
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed
    import torch

    if not torch.cuda.is_available():
        # its shared-memory kernel for CPUs compiles for a minute, and needs a compiler; gloo does the same
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()


def main() -> None:
    """Entry point."""
    console.run(app, "train.py", "The same command goes on.")


if __name__ == "__main__":
    main()
