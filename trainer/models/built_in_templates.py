"""Chat templates for models that have none of their own, or are to read another.

They are Jinja as transformers renders it, so that a student keeps the one it was trained with. Each ends an answer with the
tokenizer's eos, where it has one; contents stand as they are; reasoning stands between <think> tags before the answer; a
conversation with tools is refused, for there is no place for them.

- `alpaca`: the header of Stanford Alpaca once, or a system message in its place; "### Instruction:" and "### Response:";
- `plain`: every message begins a line, and nothing else;
- `chatml`: `<|im_start|>`, role, content, `<|im_end|>`.
"""

from typing import Any, Final

from schemas.alpaca import ALPACA
from trainer.models.tokenizer import surrounding_tokens

_HEADER: Final = ALPACA.partition("\n\n### Instruction:")[0]
_EOS: Final = "{{ eos_token if eos_token is defined else '' }}"
_NO_TOOLS: Final = (
    "{% if tools %}{{ raise_exception('there is no place for tools') }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'tool' or message['tool_calls'] %}"
    "{{ raise_exception('there is no place for calls of tools and their results') }}{% endif %}{% endfor %}"
)
_SAID: Final = (
    "{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' if message['reasoning_content'] else '' }}"
    "{{ message['content'] or '' }}"
)
_ALPACA: Final = (
    f"{_NO_TOOLS}{{% if messages[0]['role'] != 'system' %}}{_HEADER}{{% endif %}}"
    "{% for message in messages %}"
    "{{ '\\n\\n' if not loop.first or message['role'] != 'system' else '' }}"
    "{{ {'user': '### Instruction:\\n', 'assistant': '### Response:\\n', 'system': ''}[message['role']] }}"
    f"{_SAID}{{% if message['role'] == 'assistant' %}}{_EOS}{{% endif %}}"
    "{% endfor %}"
    "{{ '\\n\\n### Response:\\n' if add_generation_prompt else '' }}"
)
_PLAIN: Final = (
    f"{_NO_TOOLS}{{% for message in messages %}}{{{{ '\\n' if not loop.first else '' }}}}"
    f"{_SAID}{{% if message['role'] == 'assistant' %}}{_EOS}{{% endif %}}"
    "{% endfor %}"
    "{{ '\\n' if add_generation_prompt else '' }}"
)
_CHATML: Final = (
    f"{_NO_TOOLS}{{% for message in messages %}}{{{{ '<|im_start|>' + message['role'] + '\\n' }}}}"
    f"{_SAID}{{{{ '<|im_end|>' }}}}{{% if message['role'] == 'assistant' %}}{_EOS}{{% endif %}}{{{{ '\\n' }}}}"
    "{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
#: By name; what a tokenizer puts before every text (bos) comes in front of them (`built_in`).
BUILT_IN: Final = {"alpaca": _ALPACA, "plain": _PLAIN, "chatml": _CHATML}


def built_in(name: str, tokenizer: Any) -> str:
    """The Jinja text of a built-in template for a tokenizer (transformers.PreTrainedTokenizerBase).

    A rendered conversation is tokenized without special tokens, so those that the tokenizer puts before a text stand in
    the template. Where `<|im_end|>` is a token, it ends an answer, and no eos follows it.
    """
    before, _ = surrounding_tokens(tokenizer)
    if before == [tokenizer.bos_token_id]:
        prefix = "{{ bos_token }}"
    else:
        prefix = "".join(f"{{{{ {token!r} }}}}" for token in tokenizer.convert_ids_to_tokens(before))
    text = BUILT_IN[name]
    if "<|im_end|>" in tokenizer.added_tokens_encoder and name == "chatml":
        text = text.replace(_EOS, "")
    return prefix + text
