"""Where parser models are, known without what runs them: a wrong name is refused before seconds go into imports."""

import re
from pathlib import Path
from typing import Final

from schemas import embedded
from schemas.errors import ResourceError, UserError

EMBEDDED: Final = embedded.DATA / "parser"
#: The file by which a folder is a model of ours.
WEIGHTS: Final = "parser.safetensors"


def locate(model: str) -> Path:
    """Folder or file of `model`: `embedded`, a path, or a published name, fetched by benepar's own downloader."""
    if model == "embedded":
        return EMBEDDED
    path = Path(model)
    if path.exists():
        return path
    if not re.fullmatch(r"benepar_[a-z0-9_]+", model):
        raise UserError(f"Parser model {model!r}: no such path, and not a published benepar name such as benepar_en3.")
    from benepar.integrations import downloader

    try:
        return Path(downloader.locate_model(model))
    except LookupError:
        if not downloader.download(model, quiet=True):
            raise ResourceError(
                f"Parser model {model!r} is not installed and could not be downloaded. Fetch it where there is a network "
                f"(python -c \"import benepar; benepar.download('{model}')\"), or leave --parser-model out."
            ) from None
        return Path(downloader.locate_model(model))
