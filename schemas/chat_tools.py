"""Tools, and calls of them, as chat templates take them: in the shape of OpenAI's `tools` and `tool_calls`.

Data sets have them also as JSON text, without the `function` around a tool's name, or with their arguments as text.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from schemas.rows import RowError, Unusable, holds_something, require_paired, type_of

#: Far deeper than what a tool takes, and far from where Python's own stack ends.
_DEEPEST: Final = 100
_ARGUMENTS: Final = ("arguments", "parameters")


def tools_of(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    """The tools in `field`, each `{"type": "function", "function": {"name": ...}}`. Raises `RowError` for what is none."""
    if not holds_something(value := decoded(value, f"`{field}`")):
        return ()
    if not isinstance(value, list):
        raise RowError(f"`{field}` is {type_of(value)}, a list of tools is wanted")
    return tuple(_tool(tool, field, f"tool {number}") for number, tool in enumerate(value, 1))


def calls_of(value: Any, where: str, unused: Callable[[str], None]) -> list[dict[str, Any]]:
    """Calls, each `{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}`, the id where there is one.

    `unused` is told keys that have no place in them. Raises `RowError`, with `where`, for what is no call.
    """
    value = decoded(value, "a call of a tool", where)
    return [_call(call, where, unused) for call in (value if isinstance(value, list) else [value])]


def decoded(value: Any, what: str, where: str = "") -> Any:
    """What JSON text says, or the value itself if it is no text; checked to be what JSON can hold."""
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value, parse_constant=_not_json, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{what} is no JSON", ", ".join(filter(None, (where, _first_line(error))))) from None
    _check(value, what, where)
    return value


def _tool(value: Any, field: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f"a tool of `{field}` is {type_of(value)}, an object is wanted", where)
    tool: dict[str, Any] = value
    if "function" not in tool:
        tool = {"type": "function", "function": {key: inner for key, inner in value.items() if key != "type"}}
    function = tool["function"]
    if not isinstance(function, dict) or not holds_something(name := function.get("name")):
        raise RowError(f"a tool of `{field}` has no name", where)
    if not isinstance(name, str):
        raise RowError(f"the name of a tool of `{field}` is {type_of(name)}, a string is wanted", where)
    return tool


def _call(call: Any, where: str, unused: Callable[[str], None]) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowError(f"a call of a tool is {type_of(call)}, an object is wanted", where)
    if call.get("type") not in (None, "function"):
        raise RowError("a call is of no function", f"{where}: `{call['type']}`")
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name.strip():
        raise RowError("a call of a tool has no name", where)
    key = next((key for key in _ARGUMENTS if function.get(key) is not None), _ARGUMENTS[0])
    arguments = decoded(function.get(key), "what a tool is called with", where)
    if not isinstance(arguments, dict | None):
        raise RowError(f"what a tool is called with is {type_of(arguments)}, an object is wanted", where)
    identity = call.get("id")
    if holds_something(identity) and not isinstance(identity, str):
        raise RowError(f"the id of a call is {type_of(identity)}, a string is wanted", where)
    _tell_left(call, {"id", "type", "function"} | ({"name", key} if function is call else set()), unused)
    if function is not call:
        _tell_left(function, {"name", key}, unused)
    named = {"id": identity} if holds_something(identity) else {}
    return {**named, "type": "function", "function": {"name": name, "arguments": arguments or {}}}


def _tell_left(values: Mapping[str, Any], read: set[str], unused: Callable[[str], None]) -> None:
    for key, value in values.items():
        if key not in read and holds_something(value):
            unused(key)


def _check(value: Any, what: str, where: str, depth: int = 0) -> None:
    """Raises `RowError` for anything in `value` that JSON cannot hold, or not as UTF-8."""
    if depth > _DEEPEST:
        raise RowError(f"{what} is nested too deeply", where)
    if isinstance(value, Unusable):
        raise value.error(", ".join(filter(None, (what, where))))
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key, what, where, depth + 1)
            _check(inner, what, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, what, where, depth + 1)
    elif isinstance(value, str):
        require_paired(value, what, where)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(f"{what} holds a number that is not finite", where)
    elif not isinstance(value, int | None):
        raise RowError(f"{what} holds {type_of(value)}, which JSON cannot hold", where)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice in its object")
    return values


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _first_line(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
