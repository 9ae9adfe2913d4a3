"""Chat templates, one for each kind of behaviour that published ones show, conversations to try them on, and what holds."""

from dataclasses import dataclass

from hypothesis import strategies as st

from schemas.conversations import Content, Conversation

_TURN = "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
_PROMPT = "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"


@dataclass(frozen=True)
class Kind:
    text: str
    end: str = "<|end|>"  # ends an answer
    prefix: bool = True  # the rendering of what stands before a turn, with its prompt, begins the whole


KINDS = {
    "header": Kind("{% for m in messages %}" + _TURN + "{% endfor %}" + _PROMPT),
    "stripped": Kind(
        "{{ bos_token }}{% for m in messages %}"
        + _TURN.replace("m['content']", "m['content']|trim")
        + "{% endfor %}"
        + _PROMPT
    ),
    "line-feeds-stripped": Kind(
        "{% for m in messages %}"
        + _TURN.replace("m['content']", "m['content'].lstrip('\n')")
        + "{% endfor %}"
        + _PROMPT
    ),
    "system-late": Kind(
        "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% set rest = messages[1:] if s else messages %}{% set ns = namespace(last=0) %}"
        "{% for m in rest if m['role'] == 'user' %}{% set ns.last = loop.index %}{% endfor %}"
        "{% set seen = namespace(users=0) %}{{ bos_token }}{% for m in rest %}"
        "{% if m['role'] == 'user' %}{% set seen.users = seen.users + 1 %}"
        "[Q]{{ s + '\n\n' if s and seen.users == ns.last else '' }}{{ m['content'] }}[/Q]"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
        end="</s>",
        prefix=False,
    ),
    "system-repeated": Kind(
        "{% for m in messages %}" + _TURN + "{% endfor %}"
        "{% if messages[0]['role'] == 'system' %}{{ '(' + messages[0]['content'] + ')\n' }}{% endif %}" + _PROMPT,
        prefix=False,
    ),
    "question-as-title": Kind(
        "{{ '# ' + (messages|selectattr('role', 'equalto', 'user')|first)['content'] + '\n' }}{% for m in messages %}"
        + _TURN
        + "{% endfor %}"
        + _PROMPT,
        prefix=False,
    ),
    "always-prompted": Kind("{% for m in messages %}" + _TURN + "{% endfor %}{{ '<|assistant|>\n' }}", prefix=True),
    "last-ends-otherwise": Kind(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else '' }}",
        end="<|",
    ),
    "empty-thought": Kind(
        "{% for m in messages %}{% if loop.last and m['role'] == 'assistant' %}"
        "{{ '<|assistant|>\n<think>\n' + (m['reasoning_content'] or '') + '\n</think>\n\n' + m['content'] + '<|end|>\n' }}"
        "{% else %}" + _TURN + "{% endif %}{% endfor %}" + _PROMPT,
        prefix=False,
    ),
    "thought-prompted": Kind(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '<|assistant|>' + m['content'].split('</think>')[-1] + '<|end|>' }}"
        "{% else %}{{ '<|user|>' + m['content'] }}{% endif %}{% endfor %}"
        "{{ '<|assistant|><think>\n' if add_generation_prompt else '' }}",
        prefix=False,
    ),
    "generation-marked": Kind(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|end|>' }}{% endif %}"
        "{{ '\n' }}{% endfor %}" + _PROMPT
    ),
}

#: Kinds that write the end of an answer, or what others said, where the others do not.
ENDING_ELSEWHERE = {
    "eos-before-headers": Kind(
        "{% for m in messages %}{{ eos_token + '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
        "{{ eos_token + '<|assistant|>\n' if add_generation_prompt else '' }}",
        end="</s>",
    ),
    "reversed": Kind(
        "{% for m in messages|reverse %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        + _PROMPT,
        end="</s>",
    ),
    "reversed-without-ends": Kind(
        "{% for m in messages|reverse %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt else '' }}"
    ),
}

ALTERNATING = Kind(
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + _TURN + "{% endfor %}" + _PROMPT
)

_CALLS = "{% for c in m['tool_calls'] or [] %}<call>{{ WRITTEN }}</call>{% endfor %}"
_CALLING = (
    "{% for t in tools or [] %}{{ t['function']['name'] + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{{ CONTENT }}"
    + _CALLS
    + "{{ '<|end|>\n' }}{% endfor %}"
    + _PROMPT
)
_JSON = """'{"name": "' + c['function']['name'] + '", "arguments": ' + ARGUMENTS + '}'"""


def _calling(content="m['content']", arguments="c['function']['arguments']|tojson"):
    return _CALLING.replace("CONTENT", content).replace("WRITTEN", _JSON).replace("ARGUMENTS", arguments)


#: Kinds by how they write calls of tools, and results.
CALLING = {
    "mapping": _calling(),
    "text": _calling(arguments="c['function']['arguments']"),
    "printed": _CALLING.replace("CONTENT", "m['content']").replace(
        "WRITTEN", "c['function']['name'] }} {{ c['function']['arguments']"
    ),
    "content-needed": _calling(content="m['content'] + ''"),
    "result-as-json": _calling(content="m['content']|tojson if m['role'] == 'tool' else m['content']"),
}


def conversation(*messages, tools=()):
    """Of (role, content) or (role, content, more keys); `reasoning` among these is a content of its own."""
    contents, frame = [], []

    def part(role, text):
        if text is None:
            return None
        if not text:
            return []
        contents.append(Content(role, text))
        return [len(contents) - 1]

    for role, content, *more in messages:
        keys = dict(more[0]) if more else {}
        message = {"role": role}
        if reasoning := keys.pop("reasoning", None):
            message["reasoning_content"] = part("reasoning", reasoning)
        frame.append(message | {"content": part(role, content)} | keys)
    return Conversation(tuple(frame), tuple(contents), tuple(tools))


_TEXTS = st.text(st.sampled_from(" \n\tab<|end|>é界🎈\U00100000\U00100003"), max_size=12)
_MARKERS = st.sampled_from(["<|end|>", "<|assistant|>\n", "<|user|>", "[/Q]", "<|return|>", "\n\n", "()", ")\n", "# "])
said = st.lists(_TEXTS | _MARKERS, min_size=1, max_size=3).map("".join).filter(str.strip)


@st.composite
def exchanges(draw):
    """Arguments of `conversation`: a system prompt or none, then questions and answers in turn."""
    system = [("system", draw(said))] if draw(st.booleans()) else []
    turns = draw(st.lists(st.tuples(said, said), min_size=1, max_size=4))
    return [*system, *(message for q, a in turns for message in (("user", q), ("assistant", a)))]


CALL = {
    "type": "function",
    "id": "abcdefghi",
    "function": {"name": "weather", "arguments": {"city": "Ulm <|end|>", "days": 3}},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ASKED = [
    ("user", "How warm?"),
    ("assistant", None, {"tool_calls": [CALL]}),
    ("tool", '{"t": "3"}', {"tool_call_id": "abcdefghi"}),
    ("assistant", "Three."),
]


def check(template, row):
    """What holds of every layout."""
    layout = template.layout(row)
    assert layout.text == template.render(row)
    for content, place, (first, last) in zip(row.contents, layout.places, layout.shown, strict=True):
        if place >= 0:
            assert layout.text[place : place + last - first] == content.text[first:last]
            assert content.text.strip() in content.text[first:last]
    flat = layout.turns.ravel().tolist()
    assert flat == sorted(flat)
    assert flat[-1] <= len(layout.text)
    numbers = {
        part: n
        for n, m in enumerate(row.messages)
        for key in ("reasoning_content", "content")
        for part in m.get(key) or ()
        if isinstance(part, int)
    }
    for turn, (start, end), ending in zip(row.turns(), layout.turns, layout.endings, strict=True):
        assert start <= ending <= end
        for content, (place, (first, last)) in enumerate(zip(layout.places, layout.shown, strict=True)):
            if place >= 0:
                inside = start <= place and place + last - first <= end
                assert inside == (numbers[content] == turn)
                assert not inside or place + last - first <= ending
    return layout
