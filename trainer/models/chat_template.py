"""A side's chat template: what a model sees of a conversation, and where in it people's words and the answers stand.

A conversation is rendered exactly as transformers' `tokenizer.apply_chat_template(messages, tools=..., tokenize=False)`
does it, in its sandbox. `layout` then finds the contents in the text (`chat_outline`, `chat_placing`); a template that
rewrites them, leaves them out, or refuses a conversation rejects the row in its own words.

What a template may be told in more ways than one: a call's arguments are given as a mapping, and as JSON text where the
template fails with it or does not show it; the same holds for a message with calls alone, whose content is left away, and
else "". Reasoning is given as `reasoning_content`, or under the name by which the template asks for it.
`strftime_now` tells a fixed date, for a dataset must not depend on the day on which it is made.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from jaxtyping import Int32
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.conversations import Conversation
from schemas.errors import UsageError, UserError, nearest
from schemas.limits import MEMORY, SECONDS, TooLong, limited
from schemas.rows import RowError
from schemas.sandbox import Sandbox
from trainer.models.built_in_templates import BUILT_IN, built_in
from trainer.models.chat_calls import Messages, shaped
from trainer.models.chat_marked import MARKS_IN_TEXT, marks_for, message_of_contents
from trainer.models.chat_outline import Outline, Position, contents_left_out, outline
from trainer.models.chat_placing import LEFT_OUT, MisfitError, Shown, placed

__all__ = ["BUILT_IN", "ChatTemplate", "Layout", "NoTemplateError"]

#: A template that names any of these knows reasoning, and may leave it out where a model never sees it.
#: Keys under which templates look for the reasoning of a message, the usual one first.
_REASONING_KEYS: Final = ("reasoning_content", "thinking", "reasoning")
_KNOWS_REASONING: Final = re.compile(r"reasoning_content|thinking|</think>")
_ASKS_DATE: Final = "strftime_now"
#: Directives of `strftime` that say something of a date; the time is midnight.
_DIRECTIVES: Final = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFHIjmMpSTuUwWxXyY"]
#: What transformers calls the environment in which it compiles a template.
_SANDBOX: Final = "ImmutableSandboxedEnvironment"
#: Whether what is compiled now is ours; each thread has its own.
_OURS: Final = ContextVar("_OURS", default=False)
#: Outlines that are kept: most conversations are of a few frames.
_KEPT_OUTLINES: Final = 256


class NoTemplateError(UserError):
    """A tokenizer without a chat template of its own was to have one."""


@dataclass(frozen=True)
class Layout:
    """A rendered conversation. All numbers but `shown` are characters of `text`."""

    text: str
    places: Int32[np.ndarray, " contents"]  # where what is shown of each content begins; -1: not shown as it stands
    shown: Int32[np.ndarray, "contents 2"]  # characters [first, last) of each content that are shown (templates strip)
    turns: Int32[np.ndarray, "turns 2"]  # of each message of the assistant: behind the generation prompt, next message
    endings: Int32[np.ndarray, " turns"]  # behind the last content or call of the turn: its end token follows


class ChatTemplate:
    """A template by name, for one tokenizer (transformers.PreTrainedTokenizerBase)."""

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        subject: str,
        date: str,
        flags: str = "--teacher-template or --student-template",
    ) -> None:
        """`name`: `native` (the tokenizer's own), one of `BUILT_IN`, or a Jinja file; `date`: as 2024-07-26.

        `subject` begins errors, `flags` are named as what chooses another template. Raises `UserError` for a tokenizer
        without a template of its own, `UsageError` for a name that is none or a template that is no Jinja.
        """
        self._label = f"{subject}, chat template {name}"
        self._tokenizer = tokenizer
        self._source = name if name in ("native", *BUILT_IN) else Path(name).name
        self._templates = _templates(name, tokenizer, subject, flags)
        self._date = datetime.date.fromisoformat(date)
        self._outlines: dict[tuple[Any, ...], Outline] = {}
        added = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, added))) if added else None
        self._check_syntax()

    @property
    def text(self) -> str:
        """The Jinja text, of several named ones the default."""
        return self._templates["default"]

    def identity(self) -> dict[str, Any]:
        """All that decides what it makes of a conversation."""
        named = self._templates
        source = self.text if len(named) == 1 else json.dumps(named, sort_keys=True)
        identity = {"source": self._source, "sha256": hashlib.sha256(source.encode()).hexdigest()}
        asks_date = any(_ASKS_DATE in template for template in named.values())
        return identity | ({"date": self._date.isoformat()} if asks_date else {})

    def render(self, conversation: Conversation, add_generation_prompt: bool = False) -> str:
        """What the model sees. Raises `RowError` for what the template refuses, or leaves out of calls and tools."""
        with self._named():
            if not _is_shaped(conversation):
                return self._apply(conversation.filled(), conversation.tools, add_generation_prompt)
            shape = self._outline(conversation).shape
            return self._apply(shaped(conversation.filled(), shape), conversation.tools, add_generation_prompt)

    def prompt(self, conversation: Conversation) -> str:
        """What the model is asked. Raises `RowError` as `render` does, and for a content that `layout` would miss as well."""
        text = self.render(conversation, add_generation_prompt=True)
        marks = self._marks(conversation)
        with self._named():
            shape = self._outline(conversation).shape if _is_shaped(conversation) else None
            messages = conversation.filled(marks)
            marked = self._apply(shaped(messages, shape) if shape else messages, conversation.tools, True)
            shown = [number for number, _ in enumerate(conversation.contents) if marks[number] in marked]
            contents_left_out(conversation, shown, self._knows_reasoning(conversation))
        return text

    def layout(self, conversation: Conversation) -> Layout:
        """The rendered conversation, and where everything is in it.

        Raises `RowError` for a template that refuses it, rewrites a content or leaves one out. Reasoning may be left out
        by a template that knows it; the result of a tool that stands in a JSON string is template text (-1 both).
        """
        text = self.render(conversation)
        with self._named():
            frame = self._outline(conversation)
            try:
                occurrences = placed(text, frame, conversation.contents)
            except MisfitError as misfit:
                message = message_of_contents(conversation.messages)[misfit.content]
                role = conversation.messages[message]["role"]
                raise RowError("it rewrites a content", f"message {message + 1} ({role})") from None
        return _layout(text, frame, occurrences)

    def _outline(self, conversation: Conversation) -> Outline:
        frame, marks = conversation.to_json(), self._marks(conversation)
        roles = tuple(content.role for content in conversation.contents)
        key = (frame, roles, marks)
        if key not in self._outlines:
            if len(self._outlines) >= _KEPT_OUTLINES:
                del self._outlines[next(iter(self._outlines))]
            knows_reasoning = self._knows_reasoning(conversation)
            self._outlines[key] = outline(conversation, marks, self._apply, self._added, knows_reasoning)
        return self._outlines[key]

    def _marks(self, conversation: Conversation) -> str:
        """`marks_for` the conversation: none occurs in it or in a template."""
        contents = (content.text for content in conversation.contents)
        return marks_for(conversation, chain(contents, [conversation.to_json()], self._templates.values()))

    def _knows_reasoning(self, conversation: Conversation) -> bool:
        template = self._chosen(conversation.tools)
        return _reasoning_key(template) is not None or _KNOWS_REASONING.search(template) is not None

    def _apply(self, messages: Messages, tools: Sequence[Any], add_generation_prompt: bool) -> str:
        """The one place that renders. Raises `RowError` with the template's own words."""
        key = _reasoning_key(self._chosen(tools)) or _REASONING_KEYS[0]
        try:
            with limited(), _in_our_sandbox():
                rendered = self._tokenizer.apply_chat_template(
                    [_renamed(message, key) for message in messages],
                    tools=list(tools) or None,
                    chat_template=self._dated(self._chosen(tools)),
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
        except TooLong:
            raise UserError(f"{self._label}: it takes more than {SECONDS:.0f} s for one conversation.") from None
        except (MemoryError, RecursionError) as error:
            wants = f"more than {MEMORY} of memory" if isinstance(error, MemoryError) else "to call itself without end"
            raise UserError(f"{self._label}: it wants {wants}.") from None
        except (jinja2.TemplateSyntaxError, jinja2.exceptions.SecurityError) as error:
            raise UsageError(f"{self._label}: {error.message}") from None
        except jinja2.TemplateError as error:
            refuses = type(error) is jinja2.TemplateError  # of `raise_exception`
            raise RowError("it refuses the conversation" if refuses else "it fails", str(error)) from None
        except Exception as error:  # an expression on a value that does not suit it raises anything
            raise RowError("it fails", str(error)) from None
        return str(rendered)

    def _chosen(self, tools: Sequence[Any]) -> str:
        """The template for a conversation with or without tools, as transformers chooses among named ones."""
        return self._templates["tool_use"] if tools and "tool_use" in self._templates else self._templates["default"]

    def _dated(self, template: str) -> str:
        """The template with `strftime_now` defined in front of it: functions cannot be given to it from outside."""
        if _ASKS_DATE not in template:
            return template
        midnight = datetime.datetime.combine(self._date, datetime.time())
        replaced = "".join(f"|replace({way!r}, {midnight.strftime(way)!r})" for way in _DIRECTIVES)
        return f"{{% macro {_ASKS_DATE}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"

    def _check_syntax(self) -> None:
        """Compiles every template by a question to it; what it makes of that is of no account."""
        for tools in ((), ({"type": "function", "function": {"name": "a", "parameters": {}}},)):
            with suppress(RowError):
                self._apply([{"role": "user", "content": "a"}], tools, True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Puts the template's name before the reason why a row is rejected."""
        try:
            yield
        except RowError as error:
            detail = MARKS_IN_TEXT.sub("…", error.reason.detail)  # for contents that the template repeats
            raise RowError(f"chat template {self._source}: {error.reason.kind}", detail) from None


@contextmanager
def _in_our_sandbox() -> Iterator[None]:
    """Templates that transformers compiles within, in this thread, are compiled for `Sandbox`.

    It has no argument for one, so the name under which it takes jinja2's means from now on what `_environment` chooses.
    """
    from transformers.utils import (
        chat_template_utils,
    )  # takes seconds, and has long been imported by who has a tokenizer

    setattr(chat_template_utils, _SANDBOX, _environment)
    within = _OURS.set(True)
    try:
        yield
    finally:
        _OURS.reset(within)


def _environment(*args: Any, **kwargs: Any) -> ImmutableSandboxedEnvironment:
    """Ours for what we render, which differs in what it refuses alone, and jinja2's for whoever else compiles a template."""
    return (Sandbox if _OURS.get() else ImmutableSandboxedEnvironment)(*args, **kwargs)


def _reasoning_key(template: str) -> str | None:
    """Under which key of a message the template looks for reasoning; None where it looks under none."""
    looks_under = (key for key in _REASONING_KEYS if re.search(rf"\.{key}\b|['\"]{key}['\"]", template))
    return next(looks_under, None)


def _renamed(message: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The message with its reasoning under that key."""
    return {key if name == _REASONING_KEYS[0] else name: value for name, value in message.items()}


def require_known(name: str) -> None:
    """Raises `UsageError` for what is no name of a template and no file."""
    if name in ("native", *BUILT_IN) or Path(name).is_file():
        return
    near = nearest(name, ["native", *BUILT_IN])
    hint = f"Did you mean {near}?" if near else f"Built in: native, {', '.join(BUILT_IN)}."
    raise UsageError(f"Chat template {name!r} is neither built in nor a file. {hint}")


def _templates(name: str, tokenizer: Any, subject: str, flags: str) -> dict[str, str]:
    """The Jinja texts by name, among them `default`."""
    if name in BUILT_IN:
        return {"default": built_in(name, tokenizer)}
    if name == "native":
        own = tokenizer.chat_template
        if isinstance(own, dict) and own and "default" not in own:
            raise UserError(
                f"{subject} has several chat templates ({', '.join(sorted(own))}), none of which is its default."
            )
        if not own:
            raise NoTemplateError(
                f"{subject} has no chat template of its own. Choose one with {flags}: "
                f"{', '.join(BUILT_IN)}, or a Jinja file."
            )
        return own if isinstance(own, dict) else {"default": own}
    require_known(name)
    try:
        return {"default": Path(name).read_text(encoding="utf-8-sig")}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Chat template {name} cannot be read ({error}).") from None


def _is_shaped(conversation: Conversation) -> bool:
    """Whether there is more than one way to tell a template of it, or something that it must not leave out."""
    plain = all(
        message.get("content") is not None and not message.get("tool_calls") for message in conversation.messages
    )
    return not plain or bool(conversation.tools)


def _layout(text: str, frame: Outline, occurrences: Sequence[tuple[int, Shown]]) -> Layout:
    """Positions of the outline as characters of the text."""
    begins = [0, *(start + len(shown.text) for start, shown in occurrences)]  # of literals

    def character(position: Position) -> int:
        return begins[position.literal] + position.offset

    places = [occurrences[number][0] if number >= 0 else -1 for number in frame.chosen]
    shown = [occurrences[number][1] if number >= 0 else LEFT_OUT for number in frame.chosen]
    turns = [(character(start), character(end)) for start, end in frame.turns]
    ends = [place + len(part.text) for place, part in zip(places, shown, strict=True) if place >= 0]
    endings = [
        max([start, *(end for end in ends if start <= end <= limit), *([character(calls)] if calls else [])])
        for (start, limit), calls in zip(turns, frame.calls, strict=True)
    ]
    return Layout(
        text,
        np.array([place if part.first >= 0 else -1 for place, part in zip(places, shown, strict=True)], np.int32),
        np.array([(part.first, part.last) if part.first >= 0 else (0, 0) for part in shown], np.int32).reshape(-1, 2),
        np.array(turns, np.int32).reshape(-1, 2),
        np.array(endings, np.int32),
    )
