"""A ready-made prompt, as a student is trained on it and asked with it."""


def ready_made(prompt: str, response: str) -> str:
    """The prompt as the response follows it: on a new line, unless white space stands between them already.

    A prompt that should stand in front of the response to the character is one for a template file, `{{ prompt }}`.
    """
    return prompt if prompt[-1:].isspace() or response[:1].isspace() else prompt + "\n"
