"""What messages name exists: every `--flag` in a string of the packages is one that a command has."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from declared_flags import COMMAND, FLAG, HOLE, PIPELINE, TRAINER
from pipeline import cli
from schemas.config import CacheConfig, ParseConfig
from schemas.console import counted
from schemas.training import TrainConfig

ROOT = Path(cli.__file__).parents[1]
ASSIGNED = re.compile(r"--set ([a-z_.]+)=")
#: Flags of programs that are not ours.
FOREIGN = {
    "--long": "zstd",
    "--no-deps": "pip",
    "--nproc-per-node": "torchrun",
    "--num_gpus": "deepspeed",
    "--module": "deepspeed",
    "--master_port": "deepspeed",
    "--hostfile": "deepspeed",
    **dict.fromkeys(
        ("--inject_missing_state", "--input_folder", "--output_folder", "--num_extract_workers", "--num_merge_workers"),
        "DeepSpeed's conversion of checkpoints",
    ),
}
#: `console.run` takes it off every command line.
EVERYWHERE = {"--debug"}
#: Of `mta-prep` itself, before a command.
OUTERMOST = {"--version"}
#: Commands that make, judge and measure parsers: only files of these names may speak of flags that only they have.
WORKSHOP = {"train-parser", "eval-parser", "export-parser", "bench"}
WORKSHOP_FILES = {"cli.py", "commands.py", "training.py", "teachers.py", "cut.py", "parser.py", "bench.py", "flags.py"}


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string, what f-strings fill in as holes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def exists(flag: str, declared: set[str]) -> bool:
    pattern = re.compile(re.escape(flag).replace(re.escape(HOLE), "[a-z-]+"))
    return any(pattern.fullmatch(known) for known in declared)


def unknown(source: str, file: str, package: str) -> list[str]:
    """Every flag that the text names and no command has, with its line."""
    workshop = file in WORKSHOP_FILES
    declared = EVERYWHERE | OUTERMOST | set(FOREIGN)
    declared |= set().union(*(flags for name, flags in PIPELINE.items() if workshop or name not in WORKSHOP))
    declared |= TRAINER if package == "trainer" else set()
    wrong = []
    for line, text in texts(source):
        wrong += [
            f"{line}: {flag}" for flag in FLAG.findall(text) if flag.strip("-" + HOLE) and not exists(flag, declared)
        ]
        for command, rest in COMMAND.findall(text):
            if command in PIPELINE:
                own = PIPELINE[command] | EVERYWHERE | set(FOREIGN)
                wrong += [f"{line}: mta-prep {command} {flag}" for flag in FLAG.findall(rest) if not exists(flag, own)]
    return wrong


@pytest.mark.parametrize("package", ["schemas", "pipeline", "trainer"])
def test_every_flag_in_a_message_is_declared(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for problem in unknown(path.read_text(encoding="utf-8"), path.name, package)
    ]
    assert not wrong


def test_every_key_that_a_message_sets_exists() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {key}"
        for package in ("schemas", "pipeline", "trainer")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in texts(path.read_text(encoding="utf-8"))
        for key in ASSIGNED.findall(text)
        if key != "key" and not any(has_key(model, key) for model in (ParseConfig, CacheConfig, TrainConfig))
    ]
    assert not wrong
    assert has_key(CacheConfig, "teacher.device_map")
    assert not has_key(CacheConfig, "teacher.devicemap")


def has_key(model: type[BaseModel], key: str) -> bool:
    first, _, rest = key.partition(".")
    if first not in model.model_fields or not rest:
        return first in model.model_fields
    kinds = (model.model_fields[first].annotation, *get_args(model.model_fields[first].annotation))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) and has_key(kind, rest) for kind in kinds)


def test_the_scan_sees_flags_that_do_not_exist() -> None:
    source = (
        'raise UserError("add --response")\n'
        'raise UserError(f"add --{part}-felid")\n'
        'raise UserError(f"add --{part}-field, --out {out}")\n'
        'raise UserError("lower --max-words")\n'
        'raise UserError(f"run `mta-prep align {folder} --line-breaks hard`")\n'
        'raise UserError(f"run `mta-prep align {folder} --student {name}`")\n'
    )
    assert unknown(source, "engine.py", "pipeline") == [
        "1: --response",
        f"2: --{HOLE}-felid",
        "4: --max-words",
        "5: mta-prep align --line-breaks",
    ]


#: What cannot need quotes: numbers.
NUMBERS = re.compile(r"(\w+\.)*max_length")
PROGRAM = re.compile(r"(mta-prep|python|deepspeed|torchrun|evaluate\.py|train\.py) ")


def unquoted(source: str) -> list[str]:
    """What an f-string puts into a command between backticks as it is, with its line: a blank in it would part it."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        before = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.Constant):
                before += part.value
                continue
            *whole, inside = before.split("`")
            value = ast.unparse(part.value)
            if len(whole) % 2 and PROGRAM.match(inside) and not value.startswith("shlex."):
                wrong += [] if NUMBERS.fullmatch(value) else [f"{node.lineno}: {value}"]
            before += HOLE
    return wrong


def test_what_a_message_puts_into_a_command_is_quoted() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{problem}"
        for package in ("schemas", "pipeline", "trainer")
        for path in sorted((ROOT / package).rglob("*.py"))
        for problem in unquoted(path.read_text(encoding="utf-8"))
    ]
    assert not wrong
    source = 'f"`a` of {b}: `mta-prep align {b} -o {shlex.quote(c)} --max-length {d.max_length}` or `mta-prep {e}`"'
    assert unquoted(source) == ["1: b", "1: e"]


def test_numbers_agree_with_their_nouns() -> None:
    assert [counted(count, "row") for count in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
