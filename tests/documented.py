"""Blocks of code, commands and output on the pages: where they stand, and what is in them."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Everything that stands on the site as it is written.
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/LICENSES.md", "data/parser/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
#: Whose commands tests/test_wheel.py runs one after the other, outside of a clone.
QUICK_START = ROOT / "docs" / "quickstart.md"
#: Before a block of output stands where it is from: `printed by: COMMAND`, `printed by the code above`, `printed by a run:
#: make TARGET` (minutes long, other figures every time), or `shown by TEST`.
BLOCK = re.compile(r"(?:<!-- (?P<source>[^\n]+) -->\n)?^(?P<fence>```)(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)

BY_CODE = "printed by the code above"


@dataclass(frozen=True)
class Block:
    """A fenced block and where it stands."""

    page: Path
    line: int
    kind: str
    body: str
    source: str | None  # of output: where it is from

    @property
    def command(self) -> str | None:
        """The command that prints it, if it is run for that."""
        return source.removeprefix("printed by: ") if (source := self.source or "").startswith("printed by: ") else None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_on(page: Path) -> list[Block]:
    """All of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("fence")) + 1, match["kind"], match["body"], match["source"])
        for match in BLOCK.finditer(text)
    ]


def blocks_of(kind: str, pages: Sequence[Path] = PAGES) -> list[Block]:
    return [block for page in pages for block in blocks_on(page) if block.kind == kind]


def output_of(code: Block) -> str | None:
    """What the page shows as printed by a block of code, in the block behind it."""
    behind = next((block for block in blocks_on(code.page) if block.line > code.line), None)
    return behind.body if behind is not None and behind.source == BY_CODE else None


def commands_of(block: Block) -> list[list[str]]:
    return [words for line in block.body.splitlines() if (words := shlex.split(line, comments=True))]
