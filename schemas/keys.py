"""Dotted keys: nested mappings set, compared and spelled by them, as `--set optim.lr=2e-4` does; and the YAML of both."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import yaml

from schemas.errors import UsageError, quoted

#: YAML 1.1 takes 2e-4 for a word, 1.2 for the number it is.
_FLOAT: Final = re.compile(r"[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """No config has dates in it: a folder named like one is text. A key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises `YAMLError` for a key that stands twice, of which the library takes the last."""
        seen = set()
        for key, _ in node.value:
            name = key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.YAMLError(
                    f"the key {quoted(key.value)} stands twice, also in line {key.start_mark.line + 1}"
                )
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would take for a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, [*"+-.0123456789"])


def load(text: str) -> Any:
    """The value of a YAML text; raises `ValueError` where it has none."""
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def dump(value: Any, **options: Any) -> str:
    """YAML that `load` gives back."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options)
    return text


def assignment(text: str) -> tuple[str, Any]:
    """`optim.lr=2e-4` -> key and value, which is YAML. Raises `UsageError` for what is none."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UsageError(f"--set {quoted(text)} is no assignment; write it like optim.lr=2e-4.")
    try:
        return key, load(value)
    except ValueError:
        raise UsageError(f"--set {quoted(text)}: {quoted(value)} is no YAML value.") from None


def spelled(key: str, value: Any) -> str:
    """Inverse of `assignment`."""
    text = dump(value, default_flow_style=True, width=math.inf)
    return f"{key}={text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings; None takes it out. Raises `UsageError` if what should hold it has no keys."""
    *outer, last = key.split(".")
    for depth, part in enumerate(outer, 1):
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"`{'.'.join(outer[:depth])}` is {quoted(inner)} and has no keys, so none is `{key}`.")
        values = inner
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one with dotted keys: `{"optim": {"lr": 1}}` -> `{"optim.lr": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


class Difference(NamedTuple):
    """A key whose values differ; None where one side has none."""

    key: str
    old: Any
    new: Any


def differences(old: Any, new: Any, key: str = "") -> Iterator[Difference]:
    """The innermost keys in which two values of nested mappings differ, in their order."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield Difference(key, old, new)
