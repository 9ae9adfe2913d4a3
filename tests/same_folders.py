"""A folder of tests is one node, in whatever order files and folders stand on pytest's command line.

pytest collects the folder of a file that is named anew, and with it the folders beside that file; from 9.1 on, fixtures of a
`conftest.py` belong to the node that its folder had at first. So `pytest tests/a/x tests/test_b.py tests/a/y` had lost those of
`tests/a` for `y`.
"""

from collections.abc import Generator
from pathlib import Path

import pytest

_NODES = pytest.StashKey[dict[tuple[pytest.Collector, Path], pytest.Collector]]()


@pytest.hookimpl(wrapper=True)
def pytest_collect_directory(
    path: Path, parent: pytest.Collector
) -> Generator[None, pytest.Collector | None, pytest.Collector | None]:
    """The node that the folder has, or the one just made."""
    made = yield
    if made is None:
        return None
    return parent.session.stash.setdefault(_NODES, {}).setdefault((parent, path), made)
