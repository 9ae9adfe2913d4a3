"""The prepared dataset's Arrow schema: one row per document, one line of meaning per column.

Character offsets count Unicode code points into `text`. Spans are half-open [start, end) pairs of int32; [-1, -1) stands
for "no faithful span on this side" (units) and for tokens that stand for no character of the text (offsets): special tokens,
and those of a chat template.
"""

from typing import Final, Literal, NamedTuple

import pyarrow as pa

Side = Literal["teacher", "student"]
Granularity = Literal["words", "chunks", "phrases"]

SIDES: Final[tuple[Side, ...]] = ("teacher", "student")
#: Units, from the smallest to the largest. Aligned to both tokenizers, and what a layer is assigned to.
GRANULARITIES: Final[tuple[Granularity, ...]] = ("words", "chunks", "phrases")
LABELLED: Final[tuple[Granularity, ...]] = ("chunks", "phrases")
#: Marks a missing span and a special token's offsets.
MISSING: Final = -1

SPAN: Final = pa.list_(pa.int32(), 2)
SPANS: Final = pa.list_(SPAN)
LABELS: Final = pa.list_(pa.string())
MESSAGES: Final = pa.list_(pa.struct({"role": pa.string(), "start": pa.int32(), "end": pa.int32()}))


class Placed(NamedTuple):
    """A content of a conversation: whose it is (`schemas.conversations.ContentRole`), and its characters in `text`."""

    role: str
    start: int
    end: int


#: Columns that no tokenizer has a say in.
DOCUMENT_COLUMNS: Final[dict[str, tuple[pa.DataType, str]]] = {
    "id": (pa.string(), "the row's own id, or one derived from its content"),
    "text": (
        pa.large_string(),
        "rendered prompt and response, or the contents of a conversation, a blank line between them",
    ),
    "messages": (MESSAGES, "role and characters of each content of a conversation; empty for a rendered text"),
    "responses": (SPANS, "what is learnt, characters: the response, or contents of the assistant"),
    "conversation": (pa.large_string(), "what chat templates are given, as JSON, contents by their number; else empty"),
    "sentences": (SPANS, "sentence spans, characters"),
    "words": (SPANS, "word spans, characters, in order; no punctuation, no space"),
    "chunks": (SPANS, "flat base phrases, characters: NPs that hold no NP, and verb groups"),
    "chunk_labels": (LABELS, "NP or VP, one for one with chunks"),
    "phrases": (SPANS, "every NP and VP constituent, nested ones included, characters"),
    "phrase_labels": (LABELS, "NP or VP, one for one with phrases"),
}

#: Columns of one tokenizer; `{side}_` stands before each name.
SIDE_COLUMNS: Final[dict[str, tuple[pa.DataType, str]]] = {
    "input_ids": (pa.list_(pa.int32()), "token ids, special tokens included as the manifest records"),
    "offsets": (SPANS, "audited character range of each token, leading space excluded"),
    "responses": (SPANS, "what is learnt, tokens: the response or each turn of the assistant, its end token included"),
    "words": (SPANS, "token span of each word"),
    "chunks": (SPANS, "token span of each chunk"),
    "phrases": (SPANS, "token span of each phrase"),
}

#: Written with `--mined`.
MINED: Final = (
    "mined",
    pa.list_(pa.int32()),
    "of each student token before a learnt one, the teacher's token that alone is its partner by edit distance (MinED), or -1",
)
#: Written with `--keep-trees`.
TREES: Final = ("trees", LABELS, "bracketed parse of each sentence, empty where it was not parsed")


def label_column(name: Granularity) -> str:
    """`chunks` -> `chunk_labels`; of `LABELLED` units."""
    return f"{name.removesuffix('s')}_labels"


def side_column(side: Side, name: str) -> str:
    """`teacher`, `input_ids` -> `teacher_input_ids`."""
    return f"{side}_{name}"


def meanings(trees: bool, mined: bool) -> dict[str, tuple[pa.DataType, str]]:
    """Every column in file order with its type and meaning; `trees` and `mined` add the optional ones."""
    columns = dict(DOCUMENT_COLUMNS)
    for side in SIDES:
        for name, (kind, meaning) in SIDE_COLUMNS.items():
            columns[side_column(side, name)] = (kind, f"{side}: {meaning}")
    if mined:
        columns[MINED[0]] = MINED[1:]
    if trees:
        columns[TREES[0]] = TREES[1:]
    return columns


def arrow_schema(trees: bool, mined: bool = False) -> pa.Schema:
    """The exact schema of every shard; `trees` and `mined` add the optional columns."""
    return pa.schema([pa.field(name, kind) for name, (kind, _) in meanings(trees, mined).items()])
