"""What pydantic finds wrong with a config or a manifest, in words for whoever wrote it: it speaks of tuples and instances."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from schemas import keys
from schemas.errors import QUOTED_LIMIT, nearest, quoted

#: How our keys are spelled. Where several kinds of values are possible, pydantic names the kind it tried (`Ramp`) as well.
_KEY: Final = re.compile(r"[a-z0-9_]+")
#: By pydantic's kind of problem, what is wanted.
_WANTED: Final = {
    "string_type": "a text is wanted",
    "bool_type": "true or false is wanted",
    "bool_parsing": "true or false is wanted",
    **dict.fromkeys(("dict_type", "model_type"), "a mapping of keys to values is wanted"),
}
#: What is counted in a value of a kind.
_PARTS: Final = {"Tuple": "value", "List": "value", "Dictionary": "key"}


def first_problem(model: type[BaseModel], error: ValidationError) -> str:
    """The first of a config's problems: its place, what is wanted there and what stands there."""
    problems = error.errors()
    first = problems[0]["loc"][:1]
    # of the kinds that a value may be, the one that went furthest is meant
    problem = max((other for other in problems if other["loc"][:1] == first), key=lambda other: len(other["loc"]))
    *outer, last = problem["loc"] or ("the config",)
    parts = [str(part) for part in outer if _KEY.fullmatch(str(part))]
    if problem["type"] == "extra_forbidden" or _KEY.fullmatch(str(last)) or not parts:
        parts.append(str(last))
    place = ".".join(parts)
    if problem["type"] != "extra_forbidden":
        return f"`{place}`: {worded(problem)}, got {quoted(problem.get('input'))}."
    known: type[BaseModel] = model
    for part in problem["loc"][:-1]:
        if part in known.model_fields:  # else a place in a list, or which of several kinds was tried
            known = next(_models(known.model_fields[str(part)].annotation), known)
    near = nearest(str(problem["loc"][-1]), known.model_fields)
    hint = f"did you mean `{near}`?" if near else f"known keys: {', '.join(known.model_fields)}."
    return f"unknown key `{place}`; {hint}"


def worded(problem: Mapping[str, Any]) -> str:
    """What is wanted in place of a value: one of pydantic's problems."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in ("tuple_type", "list_type"):
        return f"a list is wanted{_of_one(problem['input'])}"
    if kind in ("too_short", "too_long") and context.get("field_type") in _PARTS:
        bound, count = ("least", context["min_length"]) if kind == "too_short" else ("most", context["max_length"])
        noun = _PARTS[context["field_type"]]
        return f"at {bound} {count} {noun if count == 1 else f'{noun}s'} should stand here"
    told = str(_WANTED.get(kind) or problem["msg"].removeprefix("Value error, "))
    return f"{told[:1].lower()}{told[1:]}"


def _of_one(value: Any) -> str:
    """How a list of a value alone is written; nothing where that is longer than messages quote."""
    if value is None or quoted(value).endswith("…"):
        return ""
    written = keys.dump([value], default_flow_style=True, width=math.inf).strip()
    return f", also of one: {written}" if len(written) <= QUOTED_LIMIT else ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type: itself, members of a union, items of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
