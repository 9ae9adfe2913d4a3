"""`make study`: does MTA help, and which of its parts? Prepares once, caches once, trains every arm and seed, tells.

    python tests/study/run.py --profile quick
    python tests/study/run.py --profile full --data DOLLY --teacher SMOLLM2 --second-tokenizer GPT2

The same command goes on after an interruption. DOLLY is a folder with `train.jsonl` and, in its folder `test`, any number
of files of test rows; one JSON object a line, each with `instruction`, `input` and `output`, as Dolly has them. Without it
the embedded sample is split. What is asked, and how it is answered: `docs/study/plan.md`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import typer

from schemas import console
from schemas.errors import Exit, StateError, UsageError
from schemas.files import write_text
from schemas.keys import assignment
from study.profiles import PROFILES, Profile
from study.stages import Study

#: Seconds that a run may take to its next step's end, when it is told to stop.
PATIENCE: Final = {"cuda": 10.0, "cpu": 60.0}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def opened(profile: Profile, work: Path, device: str) -> Study:
    """The study in a folder. Raises `StateError` for one that was begun otherwise."""
    record = work / "study.json"
    told = json.loads(json.dumps(asdict(profile) | {"device": device}))
    speed = ("workers", "gpu_gb", "threads", "device", "rouge_batch")
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        differing = [key for key in told if key not in speed and told[key] != before.get(key)]
        if differing:
            raise StateError(f"{work} holds a study of another `{differing[0]}`; choose another --work.")
    work.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(told, indent=1) + "\n")
    return Study(profile, work, device)


@app.command()
def study(
    profile: Annotated[str, typer.Option(help=f"Its size: {', '.join(PROFILES)}.")] = "quick",
    quick: Annotated[bool, typer.Option("--quick", help="The same as --profile quick.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder with train.jsonl and test/*.jsonl.")] = None,
    teacher: Annotated[str | None, typer.Option(help="The teacher, if it is not where the profile says.")] = None,
    second_tokenizer: Annotated[str | None, typer.Option(help="Likewise the second pair's tokenizer.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder to work in. Default: out/study/PROFILE.")] = None,
    only: Annotated[str | None, typer.Option(help="Only these arms or runs, with commas between them.")] = None,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Stop when the datasets are there.")] = False,
    seconds: Annotated[float, typer.Option(help="Begin nothing after so long, and end soon after.")] = float("inf"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the profile, such as epochs=2."),
    ] = None,
    member: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Prepare, cache, train, measure; the page is then WORK/study.md."""
    name = "quick" if quick else profile
    if name not in PROFILES:
        raise UsageError(f"--profile {name}: there are {', '.join(PROFILES)}.")
    chosen = _changed(PROFILES[name], {"teacher": teacher, "cross_tokenizer": second_tokenizer}, set_ or [])
    if data is None and not chosen.teacher.startswith("embedded:") and not (work and (work / "rows").is_dir()):
        raise UsageError(
            f"--profile {name} learns from rows that do not come with this project; pass --data FOLDER, with train.jsonl and a "
            "folder test of files of test rows in it."
        )
    until = time.time() + seconds
    folder = work or Path("out") / "study" / name
    if member is not None:
        _be_a_member(Study(chosen, folder, _device()), member, only, until)
        return
    ready = opened(chosen, folder, _device())
    ready.take_rows(data)
    ready.dataset("train", "spacy")
    for name in ("train", *ready.tests):
        ready.dataset(name, cross=True)
    if prepare_only:
        return
    for failure in (folder / "failures").glob("*.txt"):
        failure.unlink()  # they may not fail again
    _rounds(ready, until)
    from study.jobs import record
    from study.page import COSTS, RECORD, write

    (folder / "results").mkdir(exist_ok=True)
    for name, values in ((COSTS, ready.costs()), (RECORD, record(ready))):
        write_text(folder / "results" / f"{name}.json", json.dumps(values, indent=1) + "\n")
    write(folder / "results", folder / "study.md")
    console.stderr.print(f"Written to {folder / 'study.md'}.")


def _changed(profile: Profile, given: Mapping[str, str | None], assignments: Sequence[str]) -> Profile:
    """Raises `UsageError` for a key that a profile does not have."""
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    values |= dict(assignment(text) for text in assignments)
    unknown = values.keys() - asdict(profile).keys()
    if unknown:
        raise UsageError(f"A profile has no key `{min(unknown)}`; it has {', '.join(asdict(profile))}.")
    return replace(profile, **values)


def at_once(profile: Profile, free: float | None) -> int:
    """How many processes there is room for: the profile's, on a GPU as many as `free` bytes are enough for; at least one."""
    if free is None:
        return profile.workers
    return max(1, min(profile.workers, int(free / (profile.gpu_gb * 1e9))))


def _rounds(ready: Study, until: float) -> None:
    """Work through the grid; what ran out of memory is tried again by half as many processes, in the end by one alone."""
    from study.jobs import forget_out_of_memory

    count = at_once(ready.profile, _free_memory(ready.device))
    _members(ready, count, until)
    while count > 1 and time.time() < until and (failures := forget_out_of_memory(ready)):
        count //= 2
        console.stderr.print(f"{failures} ran out of memory; tried again with {count} at once.")
        _members(ready, count, until)


def _members(ready: Study, count: int, until: float) -> None:
    """Processes that work through the grid, each at what no other is at; all ended at `until`, and when this one is."""
    processes = []
    # of a GPU that several share, none should keep what it cannot use
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
    for number in range(count):
        command = [sys.executable, __file__, *sys.argv[1:], "--set", f"workers={count}", "--member", str(number)]
        with (ready.work / f"member-{number}.log").open("a") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    try:
        while any(process.poll() is None for process in processes) and time.time() < until:
            time.sleep(1)
    finally:
        for process in processes:
            process.terminate()  # a run saves itself after its step
        ends = time.monotonic() + PATIENCE[ready.device]
        for process in processes:
            try:
                process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _be_a_member(ready: Study, number: int, only: str | None, until: float) -> None:
    import torch

    from study.jobs import share_caches, work
    from trainer.run import Interrupted
    from trainer.train import start_ranks

    torch.set_num_threads(ready.profile.threads)
    start_ranks(0)
    try:
        if only is None:
            share_caches(ready, number, ready.profile.workers)
        work(ready, None if only is None else frozenset(only.split(",")), until)
    except Interrupted as ended:
        console.stderr.print(str(ended))
        raise typer.Exit(Exit.INTERRUPTED) from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _free_memory(device: str) -> float | None:
    """Bytes of the GPU that nobody has, or None on the CPU."""
    import torch

    return torch.cuda.mem_get_info()[0] if device == "cuda" else None


if __name__ == "__main__":
    console.run(app, "study", "The same command goes on.")
