"""What a teacher cache may hold: signals, how each is stored, and under which names in a shard's safetensors file.

A shard holds R rows of the dataset, ragged: values of all rows one after the other, and row pointers. Layers are
indices into Hugging Face `hidden_states` (0 the embeddings, the last one after the final norm). Names in a shard:

| name | shape | type | there |
|---|---|---|---|
| `tokens.rows` | [R+1] | int64 | always: pointers of the rows' tokens |
| `layer{l}.unit_rows` | [R+1] | int64 | always, per layer: pointers of its units |
| `layer{l}.unit_index` | [units] | int32 | always, per layer: which of the row's units have a teacher span |
| `layer{l}.unit_weights` | [units] | float32 | always, per layer: they add up to 1 in a row |
| `layer{l}.relations` | [pairs] | int16 | `relations`: upper triangles, or bands (`trainer.maths.triangle`), cos · 32767 |
| `layer{l}.units` | [units, d] | storage | `units`: pooled vectors |
| `layer{l}.states` | [state tokens, d] | storage | `states` |
| `layer{l}.state_rows` | [R+1] | int64 | `states` of covered tokens: pointers |
| `layer{l}.state_index` | [state tokens] | int32 | `states` of covered tokens: which of the row's tokens |
| `layer{l}.token_weights` | [state tokens] | float32 | `states`: weights of those tokens, out of a row that adds up to 1 |
| `layer{l}.attention` | [tokens] | float32 | `attention`: of the last query, over heads; adds up to 1 in a row |
| `learnt_rows` | [R+1] | int64 | `response_only`: pointers of the rows' learnt tokens |
| `learnt_index` | [learnt tokens] | int32 | `response_only`: which of the row's tokens these are |
| `final` | [learnt tokens, d] | storage | `final`: last hidden state, after the final norm |
| `topk.indices`, `topk.logprobs` | [learnt tokens, k] | int32, float16 | `topk` |
| `sorted` | [learnt tokens, K] | float16 | `sorted`: probabilities of the likeliest next tokens, falling |
| `entropy` | [learnt tokens] | float32 | `entropy`: of the next token, in nats |
| `argmax` | [learnt tokens] | int32 | `argmax`: the likeliest next token |
| `logprob` | [learnt tokens] | float32 | `logprob`: of the row's own next token; 0 behind its last |

The last four are of the teacher's own logits, before anything is rounded for storage. States of the deepest layer are
not there where `final` holds the same ones (`CacheConfig.states_are_final`); their weights are.

With `response_only`, the learnt tokens of a row are those in the dataset's `teacher_responses` and the one before each,
and states, of covered tokens or of all, are of learnt ones alone; without it, all tokens count as learnt.

A tensor stored as int8 or fp8 has `….scale` [rows of it] float32 beside it. `head.safetensors` holds the teacher's
output matrix, `weight` [V, d] and, if it has one, `bias` [V]; what else happens to its logits is in the manifest. So is what
kind of norm stands behind its last layer, of which that file has `norm.weight` and `norm.bias` [d], as far as it has them.
`embeddings.safetensors` (signal `embeddings`) holds its input embeddings of the tokens that the dataset has: `weight` [n, E]
and `ids` [n] int64, rising; there is none where `head.safetensors` has the same matrix, which the manifest then says.
`index.arrow` says where each row of the dataset, in its order, lies (`index_schema`).
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import pyarrow as pa

Signal = Literal[
    "relations", "units", "states", "final", "topk", "sorted", "attention", "entropy", "argmax", "logprob", "embeddings"
]
#: What is said of a whole distribution in one number.
Scalar = Literal["entropy", "argmax", "logprob"]
Storage = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
#: Types of numbers, as torch names them.
Number = Literal["float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "int16", "int32", "int64"]
StateTokens = Literal["covered", "all"]
Weights = Literal["centrality", "uniform"]
#: What stands behind a last layer (`trainer.models.final_norm`).
Norm = Literal["layer", "rms", "1+layer", "1+rms"]

#: Of pairs of units, unless a config says otherwise: documents of more than twice as many units of a layer are cut to pairs
#: that are nearer to each other. Twice, so that a unit of a long document costs what one of a whole triangle may.
WINDOW: Final = 256

#: Bytes of a number.
BYTES: Final[dict[Number, int]] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
#: What vectors are stored as.
STORED: Final[dict[Storage, Number]] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "float8_e4m3fn",
    "int8": "int8",
}
#: The stored number that a vector's largest magnitude becomes, for types with a scale.
TOP: Final[dict[Storage, float]] = {"fp8": 448.0, "int8": 127.0}
#: What is said of the next token in one number, by the type that it is kept in.
SCALAR_NUMBERS: Final[dict[Scalar, Number]] = {"entropy": "float32", "argmax": "int32", "logprob": "float32"}
#: Log-probabilities of `topk`, and probabilities of `sorted`: float16 is within 2^-11 of them.
PROBABILITIES: Final[Number] = "float16"

#: Signals that are kept once a chosen layer; the others once a document.
LAYER_SIGNALS: Final[frozenset[Signal]] = frozenset({"relations", "units", "states", "attention"})
#: Signals of vectors, whose storage type can be chosen.
VECTOR_SIGNALS: Final[frozenset[Signal]] = frozenset({"units", "states", "final"})
#: What is said of the next token in one number.
SCALARS: Final[tuple[Scalar, ...]] = get_args(Scalar)
#: What a method needs, by name. `mta` takes states only where both tokenizers are the same.
RECIPES: Final[dict[str, tuple[Signal, ...]]] = {
    "mta": ("relations", "states"),
    "mta-dsa": ("relations",),
    "fdd": ("states", "final"),
    "sra": ("states", "final", "attention"),
    "dskd": ("final", "embeddings"),
    "dskd-eta": ("final", "argmax"),
    "dwa": ("final", "entropy", "embeddings"),
    "gold": ("final", "logprob"),
    "uld": ("sorted", "logprob"),
    "logits": ("final",),
}

ROW_POINTERS: Final = "tokens.rows"
FINAL: Final = "final"
LEARNT_ROWS: Final = "learnt_rows"
LEARNT_INDEX: Final = "learnt_index"
TOPK_INDICES: Final = "topk.indices"
TOPK_LOGPROBS: Final = "topk.logprobs"
SORTED: Final = "sorted"
ENTROPY: Final = "entropy"
ARGMAX: Final = "argmax"
LOGPROB: Final = "logprob"
HEAD: Final = "head.safetensors"
#: In it, besides `weight` and `bias`.
NORM_WEIGHT: Final = "norm.weight"
NORM_BIAS: Final = "norm.bias"
EMBEDDINGS: Final = "embeddings.safetensors"
INDEX: Final = "index.arrow"
SHARDS: Final = "shards"


def index_schema() -> pa.Schema:
    """The schema of `index.arrow`, an Arrow IPC file (random access): one line for each row, in the dataset's order."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("shard", pa.int32(), nullable=False),  # which of the manifest's shards
            pa.field("row", pa.int32(), nullable=False),  # place among that shard's rows
            pa.field("tokens", pa.int32(), nullable=False),
        ]
    )


def tensor_name(part: str, layer: int | None = None) -> str:
    """`relations`, `24` -> `layer24.relations`; `final` as it is."""
    return part if layer is None else f"layer{layer}.{part}"


def scale_name(name: str) -> str:
    """Name of the scales beside a tensor."""
    return f"{name}.scale"


#: By what a tensor is ragged: of what a row has how many elements. Along `rows`, a pointer each, and one more.
Along = Literal["rows", "tokens", "learnt", "units", "pairs", "states"]


@dataclass(frozen=True)
class Part:
    """What is true of a tensor whatever its layer."""

    along: Along
    signal: Signal | None = None  # that it is part of; None for what is always there
    structure: bool = False  # known without a teacher


#: By what stands behind the layer in a tensor's name, or its name.
PARTS: Final[dict[str, Part]] = {
    ROW_POINTERS: Part("rows", structure=True),
    "unit_rows": Part("rows", structure=True),
    "unit_index": Part("units", structure=True),
    "unit_weights": Part("units"),
    "relations": Part("pairs", "relations"),
    "units": Part("units", "units"),
    "states": Part("states", "states"),
    "state_rows": Part("rows", "states", structure=True),
    "state_index": Part("states", "states", structure=True),
    "token_weights": Part("states", "states"),
    "attention": Part("tokens", "attention"),
    LEARNT_ROWS: Part("rows", structure=True),
    LEARNT_INDEX: Part("learnt", structure=True),
    FINAL: Part("learnt", "final"),
    TOPK_INDICES: Part("learnt", "topk"),
    TOPK_LOGPROBS: Part("learnt", "topk"),
    SORTED: Part("learnt", "sorted"),
    ENTROPY: Part("learnt", "entropy"),
    ARGMAX: Part("learnt", "argmax"),
    LOGPROB: Part("learnt", "logprob"),
}
