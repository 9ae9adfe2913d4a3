"""Flags that commands have, as typer knows them: what a message or a page may name."""

import re

import typer

from pipeline import cli
from trainer import evaluate, train

#: Stands for what an f-string fills in.
HOLE = "\0"
FLAG = re.compile(rf"(?<![\w-])--[a-z{HOLE}][a-z0-9_{HOLE}-]*")
#: A command of ours with what is behind it, to the end of the code or the next one.
COMMAND = re.compile(r"mta-prep ([a-z]+(?:-[a-z]+)*)((?:(?!mta-prep)[^`])*)")


def flags_of(app: typer.Typer) -> dict[str, set[str]]:
    """Command to its flags; those of commands within a command are the outer one's."""

    def walk(command: object) -> set[str]:
        flags = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        return flags.union(*(walk(inner) for inner in getattr(command, "commands", {}).values()), {"--help"})

    command = typer.main.get_command(app)
    inner = getattr(command, "commands", None) or {command.name: command}
    return {name: {flag for flag in walk(each) if flag.startswith("--")} for name, each in inner.items()}


PIPELINE = flags_of(cli.app)
TRAINER = set().union(*flags_of(train.app).values(), *flags_of(evaluate.app).values())
