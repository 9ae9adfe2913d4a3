"""The stages and the `mta-prep` command: read -> parse -> align -> store. Imports `schemas`, never the other way."""

from pathlib import Path
from typing import Final

#: The embedded defaults (parser, tokenizers, sample corpus), beside the packages in a checkout and in a wheel.
DATA: Final = Path(__file__).resolve().parent.parent / "data"
