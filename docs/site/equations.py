"""Blocks of `math` in the pages become MathML when the site is built: browsers draw it, without a script."""

from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give the fence its format; a file of YAML could not name a function of this one."""
    fence = {"name": "math", "class": "math", "format": drawn}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def drawn(source: str, language: str, css_class: str, options: Any, md: Any, **further: Any) -> str:
    """An equation a paragraph of LaTeX."""
    equations = (convert(" ".join(lines.split()), display="block") for lines in source.strip().split("\n\n"))
    return f'<div class="{css_class} scroll">{"".join(equations)}</div>'
