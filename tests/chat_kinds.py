"""Chat templates, one for each kind of behaviour that published ones show, and conversations to try them on."""

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
