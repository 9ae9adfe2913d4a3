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
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import typer

from schemas import console
from schemas.console import counted
from schemas.errors import Exit, StateError, UsageError, nearest, quoted
from schemas.files import make_folder, write_text
from schemas.keys import assign, assignment
from schemas.plain import json_object
from study.profiles import PROFILES, Profile
from study.stages import Study, digest

#: Seconds that a run may take to its next step's end, when it is told to stop.
PATIENCE: Final = {"cuda": 10.0, "cpu": 60.0}
#: What may differ when a study goes on: how it is run, and how much more of it is.
_MAY_DIFFER: Final = frozenset({"workers", "gpu_gb", "threads", "device", "rouge_batch", "seeds", "seeds_of_primary"})

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def opened(profile: Profile, work: Path, device: str, data: Path | None = None) -> Study:
    """The study in a folder. Raises `StateError` for one that was begun otherwise, or on other rows than those of `data`."""
    record = work / "study.json"
    told = profile.model_dump(mode="json") | {"device": device, "data": None if data is None else digest(data)}
    if record.is_file():
        before = json_object(record.read_bytes())
        if before is None:
            raise StateError(f"{record} is damaged; choose another --work.")
        if data is None:  # the rows are there
            told["data"] = before.get("data")
        # a key that a profile did not have yet is none that differs
        differing = [key for key in told if key in before and key not in _MAY_DIFFER and told[key] != before[key]]
        if differing:
            raise StateError(f"{work} holds a study of another `{differing[0]}`; choose another --work.")
        told = before | told
    make_folder(work)
    write_text(record, json.dumps(told, indent=1) + "\n")
    return Study(profile, work, device)


@app.command()
def study(
    profile: Annotated[
        str | None, typer.Option(help=f"Its size: {', '.join(PROFILES)}. Default: quick.", show_default=False)
    ] = None,
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
    if quick and profile not in {None, "quick"}:
        raise UsageError(f"--quick is --profile quick, and there is --profile {profile}; pass one of them.")
    name = profile or "quick"
    if name not in PROFILES:
        raise UsageError(f"--profile {name}: there are {', '.join(PROFILES)}.")
    chosen = _changed(name, {"teacher": teacher, "cross_tokenizer": second_tokenizer}, set_ or [])
    until = time.time() + seconds
    folder = work or Path("out") / "study" / name
    if member is not None:
        _end_with_parent()
        _be_a_member(Study(chosen, folder, _device()), member, only, until)
        return
    if data is None and not chosen.teacher.startswith("embedded:") and not (folder / "costs" / "rows.json").is_file():
        raise UsageError(
            f"--profile {name} learns from rows that do not come with this project; pass --data FOLDER, with train.jsonl and a "
            "folder test of files of test rows in it."
        )
    ready = opened(chosen, folder, _device(), data)
    from study.jobs import jobs

    wanted = _wanted([job.name for job in jobs(ready)], only)
    ready.take_rows(data)
    for rows, extractor, cross in [
        ("train", "spacy", False),
        *((rows, "benepar", True) for rows in ("train", *ready.tests)),
    ]:
        if time.time() < until:
            ready.dataset(rows, extractor, cross)
    if prepare_only:
        return
    for failure in (folder / "failures").glob("*.txt"):
        failure.unlink()  # they may not fail again
    _rounds(ready, until)
    _tell(ready, wanted, time.time() >= until)


def _wanted(names: Sequence[str], only: str | None) -> frozenset[str]:
    """The runs that `--only` names, by themselves or by their arms. Raises `UsageError` for what is neither."""
    if only is None:
        return frozenset(names)
    arm_of = {name: name.rpartition("-")[0] for name in names if name.rpartition("-")[2].isdigit()}
    arms, asked = frozenset(arm_of.values()), frozenset(_parts(only))
    for name in sorted(asked - arms - {*names}):
        meant = nearest(name, [*arms, *names])
        raise UsageError(f"--only {quoted(name)}: there is no such arm or run" + (f"; {meant}?" if meant else "."))
    return frozenset(name for name in names if name in asked or arm_of.get(name) in asked)


def _parts(only: str) -> list[str]:
    return [part.strip() for part in only.split(",") if part.strip()]


def _tell(ready: Study, wanted: frozenset[str], late: bool) -> None:
    """Write the page, and say what has not ended and why; exits with `Exit.FAILED` unless all has, or the time was over."""
    from study.jobs import ENDED, NOT_BEGUN, record
    from study.page import COSTS, RECORD, write

    results, states = ready.work / "results", record(ready)
    results.mkdir(exist_ok=True)
    for name, values in ((COSTS, ready.costs()), (RECORD, states)):
        write_text(results / f"{name}.json", json.dumps(values, indent=1) + "\n")
    write(results, ready.work / "study.md")
    console.stderr.print(f"Written to {ready.work / 'study.md'}.")
    left = {name: state for name, state in states.items() if name in wanted and state != ENDED}
    waiting = [name for name, state in left.items() if state == NOT_BEGUN]
    for name, state in left.items():
        if name not in waiting:
            console.stderr.print(f"{name}: {state}")
    if waiting:
        console.stderr.print(f"{counted(len(waiting), 'run')} left, from {waiting[0]} on: the same command goes on.")
    if left and not (late and len(waiting) == len(left)):
        raise typer.Exit(Exit.FAILED)


def _changed(name: str, given: Mapping[str, str | None], assignments: Sequence[str]) -> Profile:
    """A profile with what was given. Raises `UsageError` for a key that it does not have, and for a value that is none of it."""
    values = PROFILES[name].model_dump(mode="json")
    values |= {key: value for key, value in given.items() if value is not None}
    for text in assignments:
        assign(values, *assignment(text))
    return Profile.parse(values, f"--profile {name}")


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
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    # of a GPU that several share, none should keep what it cannot use
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
    for number in range(count):
        command = [sys.executable, __file__, *sys.argv[1:], "--set", f"workers={count}", "--member", str(number)]
        path = ready.work / f"member-{number}.log"
        with path.open("a") as log:
            processes[path] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
    try:
        while any(process.poll() is None for process in processes.values()) and time.time() < until:
            time.sleep(1)
        for path, process in processes.items():
            if process.poll():
                console.stderr.print(
                    f"A process ended with exit code {process.returncode}: the end of {path} says why."
                )
    finally:
        for process in processes.values():
            process.terminate()  # a run saves itself after its step
        ends = time.monotonic() + PATIENCE[ready.device]
        for process in processes.values():
            try:
                process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _end_with_parent() -> None:
    """End when standard input does, which is the command's: it may be killed outright, and who is left keeps its memory."""

    def follow() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not by the stream, whose lock the interpreter asks for when it ends
            pass
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
        work(ready, None if only is None else frozenset(_parts(only)), until)
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
