"""Cards: Markdown with YAML front matter, as the Hub reads it."""

from typing import Any, Final

import yaml

_FENCE: Final = "---\n"


def parted(card: str) -> tuple[dict[str, Any], str]:
    """Front matter and the text behind it; no front matter, or one that is no mapping, is an empty one."""
    if not card.startswith(_FENCE):
        return {}, card
    front, fence, text = card.removeprefix(_FENCE).partition(f"\n{_FENCE}")
    try:
        values = yaml.safe_load(front) if fence else None
    except (yaml.YAMLError, RecursionError):
        values = None
    return (values, text) if isinstance(values, dict) else ({}, card)


def joined(front: dict[str, Any], text: str) -> str:
    """Inverse of `parted`."""
    return f"{_FENCE}{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}{_FENCE}{text}"
