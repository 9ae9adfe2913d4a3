"""What every benchmark says about the machine it ran on, and how it prints its result."""

import json
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.processor import instructions, processor

LIBRARIES = ("numpy", "pyarrow", "tokenizers", "torch", "transformers", "spacy")


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
