"""Calls of tools as chat templates take them: two shapes that differ, and marks by which they are found in a rendering.

Most templates want a call's arguments as a mapping and write them as JSON; older ones want the JSON text and join it to
others. Some need an empty content beside calls, where others need none.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

Messages = Sequence[Mapping[str, Any]]


class CallShape(NamedTuple):
    """How messages with calls are given to a template."""

    empty_content: bool = False  # "" in place of a content that is not there
    arguments_text: bool = False  # arguments as JSON text, else as a mapping


def shapes(messages: Messages) -> Iterator[CallShape]:
    """Those that make a difference to these messages, the usual one first."""
    lacks_content = any(message.get("content") is None for message in messages)
    has_calls = any(message.get("tool_calls") for message in messages)
    for empty_content, text in product(
        [False, True] if lacks_content else [False], [False, True] if has_calls else [False]
    ):
        yield CallShape(empty_content, text)


def shaped(messages: Messages, shape: CallShape) -> list[dict[str, Any]]:
    """The messages in that shape."""
    given = []
    for message in map(dict, messages):
        if shape.empty_content and message.get("content") is None:
            message["content"] = ""
        if shape.arguments_text and message.get("tool_calls"):
            message["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
        given.append(message)
    return given


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def marked_call(call: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """A call with `mark` behind its name and behind every string of its arguments.

    A rendering without the marks is that of the call itself, and behind the last mark nothing follows that a person wrote
    but numbers and names of arguments.
    """
    function = call["function"]
    arguments = _marked(function.get("arguments", {}), mark)
    return {**call, "function": {**function, "name": function["name"] + mark, "arguments": arguments}}


def _marked(value: Any, mark: str) -> Any:
    if isinstance(value, str):
        return value + mark
    if isinstance(value, Mapping):  # a template may ask for an argument by its name, but hardly for one that is no word
        return {key if key.isidentifier() else key + mark: _marked(inner, mark) for key, inner in value.items()}
    return [_marked(inner, mark) for inner in value] if isinstance(value, list) else value


def marked_tool(tool: Any, mark: str) -> Any:
    """A tool with `mark` behind its name; any that has none as it is."""
    if not isinstance(tool, Mapping):
        return tool
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": marked_tool(tool["function"], mark)}
    return {**tool, "name": tool["name"] + mark} if isinstance(tool.get("name"), str) else tool
