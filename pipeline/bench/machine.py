"""What every benchmark says about the machine it ran on, and how it prints its result."""

import json
import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

LIBRARIES = ("numpy", "pyarrow", "tokenizers", "torch", "transformers", "spacy")


#: Of a processor's instructions, those that products of matrices gain by, as Linux calls them.
VECTORS: Final = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


def instructions() -> list[str]:
    """Those of `VECTORS` that this processor has, as far as Linux tells."""
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8") if listing.exists() else ""
    flags = set(match[1].split()) if (match := re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M)) else set()
    return [name for name in VECTORS if name in flags]


def processor() -> str:
    """The processor's name as Linux gives it, else what the platform says."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Of the libraries that are there: a benchmark of one part needs not all of them."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe() -> dict[str, Any]:
    """Processor with its instructions, cores this process may use, load at the time, and versions."""
    return {
        "processor": processor(),
        "instructions": " ".join(instructions()) or "none known",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **_versions(),
    }


def report(result: dict[str, Any], as_json: bool) -> None:
    """Print a result as a table with the machine below it, and with `as_json` as one JSON object on the last line."""
    machine = describe()
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {value:,.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if as_json:
        print(json.dumps({**result, "machine": machine}))
