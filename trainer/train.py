"""Train a student from a prepared dataset and a teacher cache.

    deepspeed [--num_gpus N | --hostfile …] --module trainer.train --config mta [--set optim.lr=2e-4 …]
    mta-prep train --config mta …                           # one device, no launcher

`trainer/train.py` in a clone and `--module trainer.train` anywhere are the same. The same command goes on after an
interruption. Exit codes are those of every command (`schemas.errors.Exit`).
"""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Final

if __name__ == "__main__":
    # first would come this folder, or with `-m` the current one, and their names before those of packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from schemas import console
from schemas.errors import Exit, ResourceError, UserError

app = typer.Typer(add_completion=False)

GOES_ON: Final = "The same command goes on."


@app.command()
def train(
    config: Annotated[
        Path, typer.Option(help="The training config: a YAML file, or the name of one that comes along, such as mta.")
    ],
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
    from trainer.config import load_config, require_named

    assignments = [*(set_ or []), *(["data.verify=true"] if verify else [])]
    if first_rank():
        require_named(load_config(config, assignments))  # a wrong one is told at once, while the others start
    start_ranks(local_rank)
    import torch.distributed as dist  # slow to import, and the rest as well

    from trainer.engine.ranks import AgreedError, together
    from trainer.run import Interrupted
    from trainer.run import train as run

    try:
        with together():
            settings = load_config(config, assignments)
        run(settings, overwrite)
    except (AgreedError, Interrupted) as ended:
        if first_rank():
            _tell(ended)
        dist.barrier()  # a launcher ends all ranks when one has ended: not before it is told why
        sys.exit(Exit.INTERRUPTED if isinstance(ended, Interrupted) else ended.exit_code)


def _tell(ended: Exception) -> None:
    if isinstance(ended, UserError):
        console.explain(ended.__cause__ or ended, debug="--debug" in sys.argv)
    else:
        console.stderr.print(f"{ended} {GOES_ON}")


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
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # ranks speak with each other before the engine has one
    try:
        deepspeed.init_distributed()
    except torch.distributed.DistNetworkError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ResourceError(f"Ranks cannot meet at {where}: {error}. Choose another port (--master_port).") from error


def first_rank() -> bool:
    """Whether this process is the one that talks, known before the group is there."""
    return os.environ.get("RANK", "0") == "0"


def interrupted() -> str | None:
    """What is said after Ctrl-C, by one rank."""
    return GOES_ON if first_rank() else None


def main() -> None:
    """Entry point."""
    console.run(app, "train.py", interrupted())


if __name__ == "__main__":
    main()
