"""What this machine can do, in a few lines: each a sentence for a person, the same in values, and whether to look at it."""

import os
import re
import shutil
import threading
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.bench.machine import describe
from pipeline.parse.precision import measured, told
from pipeline.processor import instructions
from schemas import console
from schemas.console import counted
from schemas.embedded import DATA

#: Exact versions that everything was tested with.
CONSTRAINTS: Final = DATA / "constraints.txt"
#: Seconds that the Hub has for an answer.
HUB_S: Final = 4.0
#: Less than that is soon full: a cache of hidden states takes gigabytes.
LITTLE_DISK: Final = 5 * 2**30
#: Versions named in a line.
_NAMED: Final = 4


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    told: str
    values: dict[str, Any]
    fine: bool = True  # False: something a person may want to change


def examine(folder: Path, network: bool = True) -> list[Finding]:
    """Look at everything; `folder`: whose disk. Takes a few seconds, and `HUB_S` more where no answer comes from the Hub."""
    hub = _Hub() if network else None  # asked while the rest is looked at
    looks = (processor, vectors, memory, gpu, parser, versions, lambda: disk(folder), deepspeed)
    findings = [look() for look in looks]
    return findings if hub is None else [*findings, hub.finding()]


def processor() -> Finding:
    """Name, cores that this process may use, load."""
    machine = describe()
    cores, load = machine["cores"], machine["load"]
    told = f"{machine['processor']}, {counted(cores, 'core')} for this process, load {load}, {machine['system']}"
    values = {key: machine[key] for key in ("processor", "cores", "load", "system", "python")}
    return Finding("processor", told, values)


def vectors() -> Finding:
    """Vector instructions, and what torch makes of them."""
    known = instructions()
    used = torch.backends.cpu.get_cpu_capability()
    return Finding(
        "instructions", f"{' '.join(known) or 'none known'}; torch uses {used}", {"known": known, "torch": used}
    )


def memory() -> Finding:
    """Of the machine, and what is free of it."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return Finding(
        "memory", f"{console.size(total)}, {console.size(free)} of it unused", {"bytes": total, "unused": free}
    )


def gpu() -> Finding:
    """GPUs that torch sees."""
    if not torch.cuda.is_available():
        return Finding("GPU", "none that torch sees: everything runs on the processor", {"gpus": []})
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    values = [{"name": each.name, "bytes": each.total_memory} for each in gpus]
    told = ", ".join(f"{each.name} ({console.size(each.total_memory)})" for each in gpus)
    return Finding("GPU", told, {"gpus": values, "cuda": torch.version.cuda})


def parser() -> Finding:
    """Which precision of the embedded parser is the fastest: what `--parser-precision auto` would take."""
    rates = measured("embedded", "cpu")
    fastest = max(rates, key=lambda name: rates[name])
    without = "" if "int8" in rates else "; int8 is slow here (neither AVX2 nor VNNI)"
    values = {"fastest": fastest, "sentences_per_second": dict(rates)}
    advice = "the default" if fastest == "float32" else f"`--parser-precision {fastest}`"
    return Finding("parser", f"{told(rates)} on one core: {advice} is the fastest{without}", values)


def tested_versions(text: str) -> dict[str, str]:
    """A constraints file's exact versions, by name."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {_normal(name): number for name, sign, number in (line.partition("==") for line in lines) if sign}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def versions() -> Finding:
    """What mta-prep needs, beside the exact versions that it was tested with."""
    tested = tested_versions(CONSTRAINTS.read_text(encoding="utf-8"))
    needed = [_normal(re.split(r"[^\w.-]", line)[0]) for line in requires("mta-prep") or () if "extra ==" not in line]
    others, missing = {}, []
    for name in needed:
        try:
            there = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if name in tested and there.partition("+")[0] != tested[name].partition("+")[0]:
            others[name] = {"installed": there, "tested": tested[name]}
    same = len(needed) - len(others) - len(missing)
    told = f"mta-prep {version('mta-prep')}; {same} of {counted(len(needed), 'package')} as tested"
    named = [f"{name} {each['installed']} (tested {each['tested']})" for name, each in others.items()]
    named += [f"{name} is not installed" for name in missing]
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        told += f"; {', '.join(named[:_NAMED])}{more}"
    values = {"mta-prep": version("mta-prep"), "as_tested": same, "others": others, "missing": missing}
    return Finding("versions", told, values, fine=not (others or missing))


def disk(folder: Path) -> Finding:
    """What is free where the command was called."""
    free = shutil.disk_usage(folder).free
    return Finding("disk", f"{console.size(free)} free in {folder.resolve()}", {"free": free}, fine=free >= LITTLE_DISK)


def deepspeed() -> Finding:
    """Whether its operations can be compiled, as they are when first used; it is not imported, which takes seconds."""
    try:
        number: str | None = version("deepspeed")
    except PackageNotFoundError:
        number = None
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    ninja, nvcc = shutil.which("ninja") is not None or _installed("ninja"), shutil.which("nvcc") is not None
    values = {"version": number, "compiler": compiler, "ninja": ninja, "nvcc": nvcc}
    if number is None:
        return Finding("DeepSpeed", "not installed: nothing can be trained", values, fine=False)
    lacking = [name for name, there in (("a C++ compiler", compiler), ("ninja", ninja)) if not there]
    if lacking:
        told = f"{number}; Adam on the processor (offload) cannot be compiled: {' and '.join(lacking)} missing"
    else:
        told = f"{number}; {compiler} and ninja can compile Adam on the processor (offload)"
    return Finding("DeepSpeed", told + (", nvcc those for the GPU" if nvcc else ""), values, fine=not lacking)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


class _Hub:
    """Asks the Hub in a thread of its own: names are looked up without a limit of time."""

    def __init__(self) -> None:
        from huggingface_hub import constants

        self._endpoint = constants.ENDPOINT
        self._offline = bool(constants.HF_HUB_OFFLINE)
        self._answer: str | None = None
        self._problem = f"no answer within {HUB_S:.0f} s"
        self._until = time.monotonic() + HUB_S
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if not self._offline:
            self._thread.start()

    def _ask(self) -> None:
        from huggingface_hub import get_session

        try:
            self._answer = str(get_session().head(self._endpoint, timeout=HUB_S).status_code)
        except Exception as error:  # whatever a client can raise: not reached, and why
            self._problem = str(error) or type(error).__name__

    def finding(self) -> Finding:
        """What came of it, at the latest when its time is over."""
        values: dict[str, Any] = {"endpoint": self._endpoint, "reachable": False, "offline": self._offline}
        if self._offline:
            return Finding("Hub", "not asked: HF_HUB_OFFLINE is set, only what is in its cache is used", values)
        self._thread.join(max(0.0, self._until - time.monotonic()))
        if self._answer is None:
            told = f"{self._endpoint} is not reached ({self._problem}): name folders, or models in its cache"
            return Finding("Hub", told, values, fine=False)
        return Finding("Hub", f"{self._endpoint} answers", values | {"reachable": True})
