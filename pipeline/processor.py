"""The processor that this runs on: its name, and its instructions."""

import platform
import re
from pathlib import Path
from typing import Final

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
