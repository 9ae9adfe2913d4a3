"""`mta-prep doctor`, as typed."""

from pathlib import Path

from pipeline.commands.flags import JsonFlag
from schemas import console
from schemas.console import Text


def doctor(as_json: JsonFlag = False) -> None:
    """Say what this machine can do: processor, GPU, the fastest precision of the parser, versions, disk, Hub, DeepSpeed.

    Takes a few seconds. What a person may want to change is in yellow; it always exits with 0.
    """
    from pipeline.bench.doctor import examine

    findings = examine(Path())
    if as_json:
        console.emit_json({each.name: {**each.values, "fine": each.fine, "told": each.told} for each in findings})
        return
    width = max(len(each.name) for each in findings)
    for each in findings:
        line = Text(f"{each.name:<{width}}  ", "bold")
        console.stdout.print(line.append(each.told, "default" if each.fine else "yellow"))
