"""Counts that add up across shards: nested mappings with numbers at the leaves."""

from collections.abc import Iterable, Mapping
from typing import Any


def added(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Leaf by leaf sum, keys sorted, so that the order of the parts does not show."""
    total: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                total[key] = added([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))
