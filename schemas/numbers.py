"""Numbers in a model of pydantic are numbers: true and false, which it takes for 1 and 0, are refused."""

from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import core_schema

_NUMBERS: Final = ("int", "float")


def numbers_alone(schema: Any, model: type[BaseModel]) -> Any:
    """A model's schema, of pydantic's core, with a check in front of every number; other models in it are left as they are."""
    if isinstance(schema, list | tuple):
        return type(schema)(numbers_alone(part, model) for part in schema)
    kind = schema.get("type") if isinstance(schema, dict) else None
    if not isinstance(schema, dict) or (kind == "model" and schema["cls"] is not model):
        return schema
    inner = {key: numbers_alone(value, model) for key, value in schema.items()}
    return core_schema.no_info_before_validator_function(_number, inner) if kind in _NUMBERS else inner


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, and not true or false")
    return value
