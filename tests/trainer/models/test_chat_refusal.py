"""What is named beside a template's refusal is what helps: no flag too many, none in vain."""

import pytest

from chat_kinds import ASKED, conversation
from schemas.errors import UsageError
from schemas.rows import RowError
from trainer.models.chat_refusal import explained
from trainer.models.chat_template import ChatTemplate
from trainer.models.tokenizer import load_tokenizer

_SAID = "{{ '<' + m['role'] + '>' + m['content'] + '\n' }}"
_NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
_ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
_PROMPT = "{{ '<assistant>' if add_generation_prompt }}"


def _template(before="", each="", messages="messages"):
    return f"{before}{{% for m in {messages} %}}{each}{_SAID}{{% endfor %}}{_PROMPT}"


#: As published ones refuse: a system prompt, an order of turns, or either.
TEMPLATES = {
    "takes all": _template(),
    "no system": _template(_NO_SYSTEM),
    "leaves the system out": _template(messages="messages|rejectattr('role', 'equalto', 'system')"),
    "alternating": _template(each=_ALTERNATE),
    "alternating behind a system": _template(
        "{% set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}"
        "{{ messages[0]['content'] + '\n' if messages[0]['role'] == 'system' }}",
        _ALTERNATE,
        "rest",
    ),
    "takes nothing": "{{ raise_exception('never') }}",
}
USER, ANSWER, SYSTEM = ("user", "Where?"), ("assistant", "In Ulm."), ("system", "Be brief.")
TURNS = {
    "alternating": [USER, ANSWER],
    "system": [SYSTEM, USER, ANSWER],
    "two questions": [USER, USER, ANSWER, USER, ANSWER, ANSWER],
    "system and two questions": [SYSTEM, USER, USER, ANSWER],
    "named apart": [("user", "Where?", {"name": "Ada"}), ("user", "When?", {"name": "Bob"}), ANSWER],
}
SYSTEM_ALONE, MERGED, BOTH = "--system-into-user", "--merge-turns", "--merge-turns --system-into-user"
#: What helps; every other refusal is beyond help.
HELPS = {
    ("no system", "system"): SYSTEM_ALONE,
    ("no system", "system and two questions"): SYSTEM_ALONE,
    ("leaves the system out", "system"): SYSTEM_ALONE,
    ("leaves the system out", "system and two questions"): SYSTEM_ALONE,
    ("alternating", "system"): SYSTEM_ALONE,
    ("alternating", "two questions"): MERGED,
    ("alternating", "system and two questions"): BOTH,
    ("alternating behind a system", "two questions"): MERGED,
    ("alternating behind a system", "system and two questions"): MERGED,
}
REFUSED = HELPS.keys() | {("takes nothing", turns) for turns in TURNS}
REFUSED |= {(name, "named apart") for name in TEMPLATES if name.startswith("alternating")}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded:bytelevel-bpe", None, "Tokenizer")


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("way", ["layout", "prompt"])
def test_what_helps_is_named_and_nothing_else(tokenizer, tmp_path, kind, way):
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATES[kind], encoding="utf-8")
    template = ChatTemplate(str(file), tokenizer, "Tokenizer", "2024-07-26")
    for name, turns in TURNS.items():
        row, take = conversation(*turns), getattr(template, way)
        if (kind, name) not in REFUSED:
            take(row)
            continue
        with pytest.raises(RowError) as told:
            take(row)
        reason = explained(told.value, row, take, "command")
        assert reason.kind == told.value.reason.kind
        flags = HELPS.get((kind, name))
        helps = f"; `command … {flags}` reads it so that it is taken" if flags else ""
        assert reason.detail == told.value.reason.detail + helps


def test_a_trial_that_cannot_be_made_names_nothing():
    def take(_):
        raise UsageError("it takes more than 5 s")

    error = RowError("it fails")
    for turns in (TURNS["two questions"], [SYSTEM, *ASKED]):
        assert explained(error, conversation(*turns), take, "command") == error.reason


def test_a_refusal_without_words_has_the_hint_alone():
    reason = explained(RowError("it refuses"), conversation(*TURNS["two questions"]), lambda _: None, "command")
    assert str(reason) == "it refuses: `command … --merge-turns` reads it so that it is taken"
