"""The alignment of one document alone, for tests that look at one."""

import numpy as np
from jaxtyping import Int8, Int32

from pipeline.align.spans import Ragged, Texts, Tokens


def token_spans(
    units: Int32[np.ndarray, "units 2"], offsets: Int32[np.ndarray, "tokens 2"], text: str
) -> tuple[Int32[np.ndarray, "units 2"], Int8[np.ndarray, " units"]]:
    """Token span and `Reason` of each unit of one document; see `Tokens`."""
    tokens = Tokens.of(Ragged.join([offsets]), Texts.of([text]))
    spans, reasons = tokens.spans_of(Ragged.join([units]))
    return spans.spans, reasons
