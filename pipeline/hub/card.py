"""The card of what is pushed: the folder's own, with its licences, its files as the Hub has them, and how to fetch it."""

import re
import shlex
from dataclasses import dataclass
from typing import Any, Final

from pipeline.hub.contents import Contents
from schemas import cards
from schemas.errors import UsageError, quoted
from schemas.hub import CALLED, CARD, HubName, Kind
from trainer.hub.restoring import DATA_FILES

#: As the Hub spells licences.
_LICENCE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*")
#: What is made of texts that can be read out of it, or has them in it.
_OF_TEXTS: Final[frozenset[Kind]] = frozenset({"dataset", "teacher-cache"})
_HEADING: Final = "## Sharing"
_SECTION: Final = re.compile(rf"\n*^{_HEADING}\n.*?(?=^## |\Z)", re.M | re.S)


@dataclass(frozen=True)
class Licences:
    """Of what is pushed, and of the texts in it or behind it; None where the card says it, or is to."""

    own: str | None
    texts: str | None


def pushed_card(card: str, contents: Contents, name: HubName, given: Licences) -> str:
    """The card with front matter for the Hub. Raises `UsageError` where a licence is stated neither there nor by a flag."""
    front, text = cards.parted(card)
    front |= _licences(front, contents, given)
    if contents.kind == "dataset":
        front["configs"] = [
            {"config_name": "default", "data_files": [{"split": "train", "path": DATA_FILES}]},
        ]
    if contents.kind == "teacher-cache":
        front["viewer"] = False  # no rows to look at
    if contents.kind in ("teacher-cache", "parser"):
        front.setdefault("tags", ["mta-prep", contents.kind])
    body = _SECTION.sub("\n", text).strip() or f"# {name.id.partition('/')[2]}"
    return cards.joined(front, f"\n{body}\n\n{_section(front, contents, name)}")


def _licences(front: dict[str, Any], contents: Contents, given: Licences) -> dict[str, Any]:
    """Keys of the front matter."""
    stated: dict[str, Any] = {}
    lacking = []
    wanted = {"license": ("--license", given.own, "of what is pushed", True)} | {
        "text_license": ("--text-license", given.texts, "of the texts", contents.kind in _OF_TEXTS)
    }
    for key, (flag, value, what, required) in wanted.items():
        if value is not None and _LICENCE.fullmatch(value) is None:
            raise UsageError(
                f"{flag} {quoted(value)} is no licence as the Hub spells them; write one like cc-by-4.0, apache-2.0, mit or "
                "other."
            )
        known = value or front.get(key)
        if known and known != "unknown":
            stated[key] = known
        elif required:
            lacking.append(f"{flag} ({what})")
    if lacking:
        raise UsageError(
            f"{contents.folder} is not pushed before its licence is stated, since nobody may use what has none: pass "
            f"{' and '.join(lacking)}, or write `license:` and `text_license:` at the head of its {CARD}."
        )
    return stated


def _section(front: dict[str, Any], contents: Contents, name: HubName) -> str:
    def shown(key: str) -> str:
        value = front[key]
        return ", ".join(f"`{part}`" for part in (value if isinstance(value, list) else [value]))

    texts = f"; of the texts: {shown('text_license')}" if "text_license" in front else ""
    lines = [f"- licence: {shown('license')}{texts}"]
    source = name.id if name.revision is None else f"{name.id}@{name.revision}"
    again = shlex.join(["mta-prep", "pull", source])
    lines.append(f"- `{again}` gives {CALLED[contents.kind].partition(' ')[2]} back, every file checked")
    if contents.kind == "dataset":
        revision = "" if name.revision is None else f', revision="{name.revision}"'
        lines.append(f'- `datasets.load_dataset("{name.id}"{revision})` reads its rows')
    if contents.kind in _OF_TEXTS:
        lines.append(f"- `mta-prep` and the trainer take `{name}` in place of a folder, and fetch it once")
    return "\n".join([_HEADING, "", *lines, ""])
