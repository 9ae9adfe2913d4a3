"""What a verification finds, of a dataset or of a cache, and what both are asked for."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.shards.pool import default_workers
from schemas.config import Strict
from schemas.errors import UsageError
from schemas.manifest import CONFIG

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Files that are looked at before the first of them is gone into.
AHEAD: Final = 64
#: Problems listed in full; more are counted.
LISTED = 20


@dataclass
class Findings:
    """What was checked and what was found wrong."""

    problems: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=lambda: {"shards": 0, "rows": 0, "tokens": 0, "units": 0})
    retokenized: dict[str, str] = field(default_factory=dict)  # side -> "every row", or why not
    decoded: dict[str, str] = field(default_factory=dict)  # the same
    found: int = 0

    def problem(self, text: str) -> None:
        """Note one problem."""
        self.found += 1
        if len(self.problems) < LISTED:
            self.problems.append(text)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": not self.found,
            "problems_found": self.found,
            "problems": self.problems,
            "checked": self.checked,
            "retokenized": self.retokenized,
            "decoded": self.decoded,
        }


def looked_at(look: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What a look at each of many files gives, in order, in a thread a core: to hash a file keeps no other thread waiting."""
    with ThreadPoolExecutor(default_workers()) as pool:
        for start in range(0, len(items), AHEAD):
            yield from pool.map(look, items[start : start + AHEAD])


def check_config(folder: Path, config: Strict, findings: Findings) -> None:
    """Whether the config beside the manifest is the manifest's, so that it makes the folder again."""
    try:
        beside = type(config).parse(Strict.from_yaml(folder / CONFIG), CONFIG)
    except UsageError as error:
        findings.problem(str(error))
        return
    if beside != config:
        findings.problem(f"{CONFIG} is not the config of the manifest.")
