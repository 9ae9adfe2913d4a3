"""From a question to token ids: rendered by a chat template where it is a conversation, and opened once."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from schemas.config import ConversationsConfig
from schemas.conversations import Conversation
from schemas.errors import UsageError, UserError
from schemas.rows import RowError
from trainer.evaluation.answers import opens_reasoning
from trainer.evaluation.questions import Question
from trainer.models.chat_refusal import explained
from trainer.models.chat_template import BUILT_IN, ChatTemplate
from trainer.models.tokenizer import behind_opening, surrounding_tokens

#: What a chat template does with this decides whether it is one.
_PROMPTED: Final = "add_generation_prompt"


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it."""

    ids: tuple[int, ...]
    was_cut: bool  # it lost its beginning
    thinking: bool  # it ends within reasoning


def open_template(name: str | None, tokenizer: Any, subject: str, needed: bool) -> ChatTemplate | None:
    """The chat template by `name`, or the tokenizer's own for None; `needed`: a question is a conversation.

    Where none is needed or named, the tokenizer's own tells only what ends a turn, and None is returned where there is none
    that can be used. Raises `UserError` for one that is needed and missing, `UsageError` for a name that is none.
    """
    date = ConversationsConfig().date
    if name is None and not needed:
        with suppress(UserError):
            return ChatTemplate("native", tokenizer, subject, date)
        return None
    template = ChatTemplate(name or "native", tokenizer, subject, date, flags="--template")
    if name not in (None, "native", *BUILT_IN) and _PROMPTED not in template.text:
        raise UsageError(
            f"Template {name!r} renders prompts; one that renders conversations is wanted, and uses `{_PROMPTED}`."
        )
    return template


class Prompter:
    """Tokenizes questions for one model.

    A conversation is tokenized just as its template renders it. A text is opened by what the model's tokenizer puts before
    one (bos), unless it begins with that, white space aside. A prompt that is too long loses its beginning, but not what
    opens it.
    """

    def __init__(
        self, tokenizer: Any, template: ChatTemplate | None, max_length: int, command: str = "mta-prep evaluate run"
    ) -> None:
        """`max_length`: most tokens of a prompt; `command`: whose flags are told where they would help.

        Raises `UsageError` if that leaves none beside those that open a text.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._command = command
        self._opening, _ = surrounding_tokens(tokenizer)
        self.max_length = max_length
        if max_length <= len(self._opening):
            raise UsageError(f"--max-prompt-length {max_length} leaves no room beside the tokens that open a text.")

    def __call__(self, question: Question) -> Asked:
        """Raises `UserError` with file and line for a conversation that the template does not take."""
        try:
            return self.asked(question.prompt)
        except RowError as error:
            raise UserError(f"{question.where}: {error.reason}.") from None

    def asked(self, prompt: str | Conversation) -> Asked:
        """Raises `RowError` for a conversation that the template does not take."""
        if isinstance(prompt, str):
            return self._asked(prompt, bare=True)
        return self._asked(self._rendered(prompt), bare=False)

    def _asked(self, text: str, bare: bool) -> Asked:
        """`bare`: nothing has opened the text, unless it says so itself."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        thinking = not bare and opens_reasoning(text)
        own = behind_opening(self._tokenizer, ids, self._opening)
        whole = [*self._opening, *ids] if bare and not own else ids
        if len(whole) <= self.max_length:
            return Asked(tuple(whole), False, thinking)
        opening = self._opening if bare or own else []
        return Asked((*opening, *ids[own:][len(opening) - self.max_length :]), True, thinking)

    def _rendered(self, conversation: Conversation) -> str:
        assert self._template is not None
        try:
            return self._template.prompt(conversation)
        except RowError as error:
            raise RowError(*explained(error, conversation, self._template.prompt, self._command)) from None
