"""Where Jinja templates run: the sandbox of jinja2, in which nothing is left to chance and no operator runs away.

Loops can be stopped from outside (`schemas.limits`); one operation of Python's own cannot, so its operands are bounded here.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import jinja2
from jinja2 import filters, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Characters of a prompt, and of a text or list that an operator makes within a template.
LARGEST: Final = 2**24
#: Bits of a number that an operator makes.
LARGEST_NUMBER: Final = 2**12
#: Decimal places to which a number is rounded, before or behind its point.
_PLACES: Final = 300
#: What says of itself what it holds.
_TOLD: Final = (str, int, float, list, tuple, dict, jinja2.Undefined)
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+>$")
#: Of what is left to chance.
_CHANCE: Final = "`{}` gives another text at every run, and so would the dataset be another; leave it out."


class _Code(CodeGenerator):
    """jinja2's, which writes a constant as Python shows it: of infinity that is a name that nobody has."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        if not all(map(math.isfinite, _floats(node.value))):
            self.fail("a number is not finite", node.lineno)
        super().visit_Const(node, frame)


def _floats(value: Any) -> Iterator[float]:
    """Numbers with a point in a constant, which may be a tuple, a list or a mapping of others."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple | list | dict):
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _floats(inner)


class Sandbox(ImmutableSandboxedEnvironment):
    """In which operators cannot be asked for more than a machine has: each would go on for hours within itself."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"**", "*", "//", "%"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, finalize=_without_address)
        self.filters |= {"round": _rounded, "random": _random}

    def compile(
        self, source: Any, name: Any = None, filename: Any = None, raw: Any = False, defer_init: Any = False
    ) -> Any:
        """As jinja2's. Raises `jinja2.TemplateSyntaxError` for a template that leaves something to chance as well."""
        with _syntax(name, filename):
            tree = self.parse(source, name, filename) if isinstance(source, str) else source
            _refuse_chance(tree)
            return super().compile(tree, name, filename, raw, defer_init)

    def parse(self, source: str, name: Any = None, filename: Any = None) -> nodes.Template:
        """As jinja2's. Raises `jinja2.TemplateSyntaxError`."""
        with _syntax(name, filename):
            return super().parse(source, name, filename)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operator, where what it gives is of a size that a prompt may need. Raises OverflowError elsewhere."""
        if isinstance(left, int) and isinstance(right, int):
            if _bits(operator, left, right) > LARGEST_NUMBER:
                raise OverflowError(f"a number of more than {LARGEST_NUMBER:,} bits")
        elif operator == "*":
            for value, factor in ((left, right), (right, left)):
                if hasattr(value, "__len__") and isinstance(factor, int) and len(value) * factor > LARGEST:
                    raise OverflowError(f"a product of more than {LARGEST:,} items")
        return super().call_binop(context, operator, left, right)


@contextmanager
def _syntax(name: Any, filename: Any) -> Iterator[None]:
    """What jinja2 lets through and Python then refuses of a template (a number of 5,000 digits, 21 loops in one another, an
    argument given twice) is an error of syntax as well."""
    try:
        yield
    except (ValueError, SyntaxError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error).partition(":")[0]
        raise jinja2.TemplateSyntaxError(f"Python refuses what stands there: {reason}", 1, name, filename) from None


def _bits(operator: str, left: int, right: int) -> int:
    """About so many bits an operator on whole numbers works with."""
    first, second = left.bit_length(), right.bit_length()
    return {"**": first * right, "*": first + second}.get(operator, max(first, second))


def _rounded(value: float, precision: int = 0, method: Any = "common") -> float:
    """The filter `round`, which raises ten to the power of the precision."""
    if abs(precision) > _PLACES:
        raise OverflowError(f"a number rounded to more than {_PLACES} places")
    return filters.do_round(value, precision, method)


def _refuse_chance(tree: nodes.Template) -> None:
    """Raises `jinja2.TemplateAssertionError` for what would give another text at every run."""
    by_chance = [(node.lineno, node.name) for node in tree.find_all(nodes.Filter) if node.name == "random"]
    by_chance += [(node.lineno, node.name) for node in tree.find_all(nodes.Name) if node.name == "lipsum"]
    for line, name in by_chance:
        raise jinja2.TemplateAssertionError(_CHANCE.format(name), line)


def _without_address(value: Any) -> Any:
    """What is written into the text, as it is. Raises `SecurityError` for a generator, a method and their kin."""
    if not isinstance(value, _TOLD) and (address := _ADDRESS.search(text := str(value))):
        raise SecurityError(
            f"`{text[: address.start()]} …>` is written into the text, with an address that is another at every run; "
            "a list of it, or what it gives when it is called, is not."
        )
    return value


def _random(*_: Any) -> None:
    """The filter `random`, where its name was not seen in the template: `map` takes a filter's."""
    raise SecurityError(_CHANCE.format("random"))
