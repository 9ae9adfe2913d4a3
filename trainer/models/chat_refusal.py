"""What a person can do about a conversation that a chat template refuses: read it otherwise, where that helps."""

from collections.abc import Callable
from typing import Final

from schemas.chat_assembly import arranged_anew
from schemas.conversations import Conversation
from schemas.errors import UserError
from schemas.rows import Reason, RowError

#: Ways to read a conversation otherwise: the flags of those who read rows, and what they ask of `arranged_anew`.
_OTHERWISE: Final = (
    ("--system-into-user", {"system_into_user": True}),
    ("--merge-turns", {"merge_turns": True}),
    ("--merge-turns --system-into-user", {"merge_turns": True, "system_into_user": True}),
)


def explained(error: RowError, refused: Conversation, take: Callable[[Conversation], object], command: str) -> Reason:
    """Why it is refused, and the flag or flags of `command`, which reads rows, with which it is taken, if any help.

    `take` is what a template does with a conversation; it has raised `error` for `refused`, and is tried with each way.
    """
    kind, detail = error.reason
    for flags, options in _OTHERWISE:
        try:
            otherwise = arranged_anew(refused, **options)
            if otherwise == refused:
                continue
            take(otherwise)
        except (RowError, UserError):
            continue
        return Reason(kind, "; ".join(filter(None, (detail, f"`{command} … {flags}` reads it so that it is taken"))))
    return error.reason
