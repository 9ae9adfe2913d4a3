"""What a dataset's `vocabulary.safetensors` holds: the tokens of both sides by what they spell, and which are the same.

| name | shape | type | meaning |
|---|---|---|---|
| `shared` | [shared, 2] | int32 | tokens of equal bytes, the student's id and the teacher's, by the student's |
| `nearest` | [teacher's vocabulary] | int32 | the student's nearest token to each, or -1; with `--mined nearest` alone |
| `{side}.bytes` | [bytes] | uint8 | what the tokens spell, by id, one after the other |
| `{side}.lengths` | [vocabulary] | int32 | bytes of each |
| `{side}.special` | [special] | int32 | ids of special tokens, rising |
| `{side}.fallback` | [byte tokens] | int32 | ids of byte tokens, rising: of characters that the vocabulary lacks |
| `{side}.end` | [0 or 1] | int32 | id of the one that usually ends what is learnt; none where none is known |

Bytes are those of the text: byte-level letters and byte tokens decoded, a space where a tokenizer writes a mark for it. Special
tokens are compared by their role alone: where both sides have a token that usually ends what is learnt, those two are shared.
Of several ids of a side with the same bytes the lowest is taken, a byte token only where there is no other: where a vocabulary
has a character, its byte token is never used.
"""

from typing import Final, Literal

from schemas.columns import Side

VOCABULARY: Final = "vocabulary.safetensors"
SHARED: Final = "shared"
NEAREST: Final = "nearest"

Part = Literal["bytes", "lengths", "special", "end", "fallback"]


def part_name(side: Side, part: Part) -> str:
    """`student`, `lengths` -> `student.lengths`."""
    return f"{side}.{part}"
