"""Rows as tests say them: texts, and where their responses begin."""

from pipeline.text import Rendered


def prompted(texts, starts):
    """Rendered texts; a response begins at 0 where there is no prompt."""
    return [
        Rendered(f"row-{row}", text, ((start, len(text)),))
        for row, (text, start) in enumerate(zip(texts, starts, strict=True))
    ]


def borders(start):
    """Those of a text whose response begins there."""
    return (start,) if start else ()


def response_start(encoding):
    """The first token of a rendered text's response."""
    return int(encoding.responses[0, 0])
