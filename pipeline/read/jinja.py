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
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.read.records import RowError
from schemas.errors import UsageError

_OTHER_TEMPLATES: Final = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
#: What an expression raises on a value that does not suit it.
_VALUE_ERRORS: Final = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class PromptTemplate:
    """A compiled template. `uses` holds the names that it takes from outside."""

    def __init__(self, source: str, name: str, available: Collection[str]) -> None:
        """`name` stands in errors; `available` are the names that `render` will be given.

        Raises `UsageError` with name and line for what cannot work on any row.
        """
        environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            autoescape=False,  # this is text for a tokenizer, not HTML
        )
        self._name = name
        try:
            tree = environment.parse(source, name, name)
            code = environment.compile(source, name, name)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(f"{name}, line {error.lineno}: {error.message}") from None
        for node in tree.find_all(_OTHER_TEMPLATES):
            raise UsageError(f"{name}, line {node.lineno}: a template stands alone; put the other file's text here.")
        self.uses = frozenset(find_undeclared_variables(tree))
        for used in tree.find_all(nodes.Name):
            if used.name in self.uses and used.name not in available:
                raise UsageError(
                    f"{name}, line {used.lineno}: no field gives `{used.name}`. Name the field with a flag, or use one "
                    f"of {', '.join(sorted(available))}."
                )
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt.

        Raises `RowError` when a value is missing from the row or does not suit an expression, and `UsageError` when the
        sandbox forbids what the template does.
        """
        try:
            return self._template.render(values)
        except (jinja2.UndefinedError, *_VALUE_ERRORS) as error:
            raise RowError(f"{self._place(error)}: {error}") from None
        except jinja2.TemplateRuntimeError as error:
            raise UsageError(f"{self._place(error)}: {error}") from None

    def _place(self, error: Exception) -> str:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._name]
        return f"{self._name}, line {lines[-1]}" if lines else self._name
