"""The `mta-prep` command: its name, its help, and which commands there are."""

import sys
from importlib.metadata import version as version_of
from typing import Annotated, Final

import typer

from pipeline.commands.align import align
from pipeline.commands.bench import bench_parser
from pipeline.commands.cache_teacher import cache_teacher
from pipeline.commands.doctor import doctor
from pipeline.commands.generate import generate
from pipeline.commands.inspect import info, inspect, verify
from pipeline.commands.parse import parse
from pipeline.commands.parser import eval_parser, export_parser, train_parser
from pipeline.commands.pull import pull
from pipeline.commands.push import push
from pipeline.commands.report import report
from schemas import console
from trainer import evaluate, train

app = typer.Typer(
    name="mta-prep",
    help="Prepare text for structure-aware distillation: parses, aligned token spans, teacher signals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHARDS_ARE_KEPT: Final = "Interrupted. Finished shards are kept: run the same command again to go on."

bench_app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)

for command in (
    parse,
    align,
    inspect,
    verify,
    info,
    report,
    doctor,
    generate,
    cache_teacher,
    train.train,
    push,
    pull,
    train_parser,
    eval_parser,
    export_parser,
):
    app.command()(command)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(bench_app, name="bench")
bench_app.command("parser")(bench_parser)


def _tell_version(asked: bool) -> bool:
    if asked:
        console.stdout.print(f"mta-prep {version_of('mta-prep')}")
        raise typer.Exit
    return asked


@app.callback()
def mta_prep(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of no command."""


def main() -> None:
    """Entry point."""
    told = {"train": train.interrupted(), "evaluate": evaluate.INTERRUPTED}
    interrupted = told.get(next(iter(sys.argv[1:]), ""), SHARDS_ARE_KEPT)
    console.run(app, "mta-prep", interrupted, may_be_empty=("--csv-quote",))
