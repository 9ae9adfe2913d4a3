"""The Alpaca prompt, byte for byte as the field uses it: what a student is trained on and what it is asked with."""

from typing import Final

#: Places for values are those of `str.format`.
ALPACA: Final = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def question(instruction: str, context: str) -> tuple[str, str]:
    """Instruction and input; where the instruction is empty and the input holds the question, it is the instruction."""
    return (instruction, context) if instruction.strip() else (context, "")


def alpaca(instruction: str, context: str = "") -> str:
    """The prompt for an instruction, and for its input (`context`) where that is not empty."""
    return (ALPACA_WITH_INPUT if context else ALPACA).format(instruction=instruction, input=context)
