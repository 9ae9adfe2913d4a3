"""Where a config takes anything: values that JSON gives back, with numbers that are finite.

YAML knows more: infinity, sets, bytes, keys that are no text, and lists that hold themselves.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator
from pydantic_core import from_json

from schemas.errors import quoted

#: What stands for itself in JSON.
_SCALARS: Final = (str, int, float, type(None))
#: Levels and values of what may be anything. With aliases, a few lines of YAML make it endless.
_DEPTH: Final = 64
_MOST: Final = 10_000


def plain(value: Any) -> Any:
    """The value as JSON gives it back. Raises `ValueError` for what JSON cannot hold, or only without end."""
    for count, (key, leaf) in enumerate(_leaves(value)):
        where = f"`{key}` is " if key else ""
        if count == _MOST:
            raise ValueError(f"more than {_MOST:,} values stand in it")
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise ValueError(f"{where}{leaf}, no finite number" if key else "input should be a finite number")
        if not isinstance(leaf, _SCALARS):
            raise ValueError(f"{where}neither text nor a number, and no list or mapping of such")
    return json.loads(json.dumps(value))


#: Any such value, with keys of text in its mappings. Others are refused with their key.
Plain = Annotated[Any, BeforeValidator(plain)]


def json_object(text: bytes) -> dict[str, Any] | None:
    """The object that a JSON text is; None for what is damaged, or is none."""
    try:
        value = from_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What nested mappings and lists hold, with its dotted key. Raises `ValueError` for keys that no JSON has."""
    if not isinstance(value, Mapping | list | tuple):
        yield key, value
        return
    if depth == _DEPTH:
        raise ValueError(f"it is nested deeper than {_DEPTH} levels, or holds itself")
    names = value if isinstance(value, Mapping) else range(len(value))
    if len({str(name) for name in names}) < len(value):
        raise ValueError("a key stands twice, as text and as a number")
    for name in names:
        inner = value[name]
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(f"a key is {quoted(name)}, no text")
        yield from _leaves(inner, f"{key}.{name}" if key else str(name), depth + 1)
