"""A Jinja template that renders a prompt, in a sandbox that gives it values and nothing else.

Whatever can be told from the template alone is told when it is made: syntax, names that no field gives, other templates
it would pull in (they would escape its hash). What depends on the row is the row's fault.
"""

import traceback
from collections.abc import Collection, Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

from schemas.errors import UsageError
from schemas.limits import MEMORY, SECONDS, TooLong, limited
from schemas.rows import RowError
from schemas.sandbox import LARGEST, Sandbox

_OTHER_TEMPLATES: Final = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
#: What an expression raises on a value that does not suit it.
_VALUE_ERRORS: Final = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class PromptTemplate:
    """A compiled template.

    `uses` holds the names that it takes from outside, `row_fields` the fields of `row` that it takes: None for any of them.
    """

    def __init__(self, source: str, name: str, available: Collection[str]) -> None:
        """`name` stands in errors; `available` are the names that `render` will be given.

        Raises `UsageError` with name and line for what cannot work on any row.
        """
        environment = Sandbox(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,  # this is text for a tokenizer, not HTML
        )
        self._name = name
        try:
            with limited():  # constants are computed here
                tree = environment.parse(source, name, name)
                code = environment.compile(source, name, name)
                self.uses = frozenset(find_undeclared_variables(tree))
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(f"{name}, line {error.lineno}: {error.message}") from None
        except (TooLong, MemoryError, RecursionError):
            raise UsageError(f"{name}: the template is too large, or computes too much, to be prepared.") from None
        for node in tree.find_all(_OTHER_TEMPLATES):
            raise UsageError(f"{name}, line {node.lineno}: a template stands alone; put the other file's text here.")
        for used in tree.find_all(nodes.Name):
            if used.name in self.uses and used.name not in available:
                raise UsageError(
                    f"{name}, line {used.lineno}: no field gives `{used.name}`. Name the field with a flag, or use one "
                    f"of {', '.join(sorted(available))}."
                )
        self.row_fields = _fields_of_row(tree)
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt.

        Raises `RowError` when a value is missing from the row or does not suit an expression, or makes the prompt larger
        than any model reads, and `UsageError` when the sandbox forbids what the template does, or it does not end.
        """
        try:
            with limited():
                prompt = self._template.render(values)
        except TooLong:
            raise UsageError(
                f"{self._name}: the template takes more than {SECONDS:.0f} s for one row; does it end? Look at its loops."
            ) from None
        except (MemoryError, RecursionError) as error:
            wants = f"more than {MEMORY} of memory" if isinstance(error, MemoryError) else "to call itself without end"
            raise UsageError(f"{self._place(error)}: the template wants {wants}.") from None
        except (jinja2.UndefinedError, *_VALUE_ERRORS) as error:
            raise RowError(f"{self._place(error)}, the template fails", str(error)) from None
        except jinja2.TemplateRuntimeError as error:
            raise UsageError(f"{self._place(error)}: {error}") from None
        if len(prompt) > LARGEST:
            raise RowError(f"{self._name} makes a prompt of over {LARGEST:,} characters", f"{len(prompt):,} characters")
        return prompt

    def _place(self, error: Exception) -> str:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._name]
        return f"{self._name}, line {lines[-1]}" if lines else self._name


def _fields_of_row(tree: nodes.Template) -> frozenset[str] | None:
    """The fields `x` of every `row.x` and `row['x']`; None where `row` stands in any other way."""
    named = [node.attr for node in tree.find_all(nodes.Getattr) if _is_row(node.node) and node.attr not in dir(dict)]
    named += [
        node.arg.value
        for node in tree.find_all(nodes.Getitem)
        if _is_row(node.node) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
    ]
    return frozenset(named) if len(named) == sum(map(_is_row, tree.find_all(nodes.Name))) else None


def _is_row(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "row"
