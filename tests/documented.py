"""Blocks of code, commands and output on the pages: where they stand, and what is in them."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Whose commands tests/test_wheel.py runs one after the other, outside of a clone.
QUICK_START = ROOT / "docs" / "quickstart.md"
BLOCK = re.compile(r"(?:<!-- printed by: (?P<command>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block and where it stands."""

    page: Path
    line: int
    kind: str
    body: str
    command: str | None  # that prints it

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(kind: str, pages: Sequence[Path] = PAGES) -> list[Block]:
    blocks = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match["kind"] == kind:
                line = text.count("\n", 0, match.start()) + 1
                blocks.append(Block(page, line, kind, match["body"], match["command"]))
    return blocks


def commands_of(block: Block) -> list[list[str]]:
    return [words for line in block.body.splitlines() if (words := shlex.split(line, comments=True))]
