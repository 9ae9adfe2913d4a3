"""Typed configs: YAML in, frozen objects, resolved YAML out. Of an unknown key the nearest known one is named."""

import datetime
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas import keys
from schemas.columns import Granularity
from schemas.errors import UsageError, one_line
from schemas.numbers import numbers_alone
from schemas.problems import first_problem
from schemas.signals import Signal, StateTokens, Storage, Weights

Config = TypeVar("Config", bound="Strict")
#: Of random numbers.
LARGEST_SEED: Final = (1 << 63) - 1
#: A name, a path, a word: an empty one names nothing, and as a path would be the current folder.
Name = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """Frozen, closed to keys that it does not know, and with finite numbers alone, for which no true or false stands."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """pydantic's, in which neither true nor false stands for a number."""
        schema = handler(source)
        model: Any = handler.resolve_ref_schema(schema)
        model.update(numbers_alone(model, cls))
        return schema

    @classmethod
    def parse(cls: type[Config], values: dict[str, Any], where: str) -> Config:
        """Validate; raises `UsageError` with the first problem, its place and what would be right."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(f"{where}: {first_problem(cls, error)}") from None

    @classmethod
    def from_yaml(cls, path: Path) -> dict[str, Any]:
        """The raw mapping in a YAML file, for flags to override before `parse`."""
        try:
            values = keys.load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"No config file at {path}.") from None
        except IsADirectoryError:
            raise UsageError(f"{path} is a folder; a config is a YAML file, such as {path / 'config.yaml'}.") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read as YAML ({one_line(error)}).") from None
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise UsageError(f"{path}: a config is a mapping of keys to values, this is a {type(values).__name__}.")
        return values

    def to_yaml(self) -> str:
        """YAML that gives this object back."""
        return keys.dump(self.model_dump(mode="json"))


#: What the fields of a row are to each other (see `pipeline.read.fields`).
Form = Literal["conversation", "ready-made", "instruction", "prompt", "text"]


class FieldsConfig(Strict):
    """Which field of a row plays which part. A part that is not named is looked for, in every row, under the usual names."""

    form: Form | None = None  # None: by the first rows
    id: Name | None = None
    prompt: Name | None = None
    response: Name | None = None
    instruction: Name | None = None
    input: Name | None = None
    output: Name | None = None
    messages: Name | None = None
    text: Name | None = None


class PromptFieldsConfig(Strict):
    """The same of rows that ask and hold no answer, or none that is looked at."""

    id: Name | None = None
    prompt: Name | None = None
    instruction: Name | None = None
    input: Name | None = None
    messages: Name | None = None


class CsvConfig(Strict):
    """How CSV and TSV files are written. All unset: by their name and header (see `pipeline.read.csv_dialect`)."""

    delimiter: str | None = None  # or `tab`
    quote: str | None = None  # or `none`: a quote is text, and no cell holds a delimiter or a line end
    escape: str | None = None  # a quote or delimiter behind it is text

    @field_validator("delimiter", "quote", "escape", mode="before")
    @classmethod
    def _worded(cls, value: Any) -> Any:
        return _CHARACTERS.get(value, value) if isinstance(value, str) else value

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _single(cls, value: str | None) -> str | None:
        if value and (len(value) > 1 or value in "\r\n"):
            raise ValueError("one character is wanted (or `tab`; for the quote also `none`)")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> "CsvConfig":
        if "" in (self.delimiter, self.escape):
            raise ValueError("only the quote can be `none`")
        given = [value for value in (self.delimiter, self.quote, self.escape) if value]
        if len(set(given)) < len(given):
            raise ValueError("delimiter, quote and escape must be different characters")
        return self


#: Characters by the words for them.
_CHARACTERS: Final = {"tab": "\t", r"\t": "\t", "none": ""}


class SideConfig(Strict):
    """One tokenizer, its chat template, how it ends a response, and its limits."""

    tokenizer: Name
    revision: Name | None = None
    #: of conversations: `native`, `alpaca`, `plain`, `chatml` or a Jinja file; None: what the whole config says
    template: Name | None = None
    eos: Name | None = None  # ends a response; None: what the tokenizer puts there, or its own eos
    max_length: int | None = Field(default=None, ge=2)
    max_prompt_length: int | None = Field(default=None, ge=1)


Precision = Literal["float32", "bf16", "int8"]


class ParserConfig(Strict):
    """How constituents are found."""

    kind: Literal["benepar", "spacy"] = "benepar"
    #: benepar: `embedded`, a folder, or a published name; spacy: an installed pipeline's name or folder
    model: Name = "embedded"
    device: Name = "cpu"
    #: of the linear layers; bf16 is meant for GPUs, int8 for CPUs; auto: the fastest here, which takes its place
    precision: Precision | Literal["auto"] = "float32"
    token_budget: int = Field(default=2048, ge=64)  # subwords in one batch; may move last bits, so it is recorded
    max_words: int = Field(default=100, ge=2)  # longer sentences are split at the best boundary
    keep_trees: bool = False


LineBreaks = Literal["auto", "hard", "soft"]


class SegmentConfig(Strict):
    """How text becomes sentences and words."""

    #: `rules`, or `senter:NAME` for the `senter` of an installed spaCy pipeline
    sentences: Name = "rules"
    #: inside a paragraph: `hard`, every one ends a sentence; `soft`, none does; `auto`, all but those that wrapping made
    line_breaks: LineBreaks = "auto"


Learn = Literal["all", "last", "no-reasoning"]
#: Which tokens of two vocabularies are taken for each other: those of equal bytes, or besides those of least edit distance.
Mined = Literal["exact", "nearest"]


class ConversationsConfig(Strict):
    """What is done with conversations."""

    learn: Learn = "all"  # every turn of the assistant, the last one, or all without reasoning
    merge_turns: bool = False  # neighbours of one role become one message
    system_into_user: bool = False  # a system prompt stands at the beginning of the first message of the user
    #: what a template is told that asks for the day, so that a dataset does not depend on when it is made
    date: str = Field(default="2024-07-26", pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")

    @field_validator("date")
    @classmethod
    def _a_day(cls, value: str) -> str:
        try:
            datetime.date.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"a day is wanted, and this is none ({error})") from None
        return value


class CorpusConfig(Strict):
    """Which rows are read."""

    inputs: tuple[Name, ...] = Field(min_length=1)
    split: Name | None = None  # of a hub dataset
    input_revision: Name | None = None  # of a hub dataset
    limit: int | None = Field(default=None, ge=1)
    csv: CsvConfig = CsvConfig()


class ParseConfig(CorpusConfig):
    """Everything that decides the content of a prepared dataset."""

    fields: FieldsConfig = FieldsConfig()
    template: Name = "auto"  # of both sides: auto, native, alpaca, plain, chatml, or a Jinja file
    conversations: ConversationsConfig = ConversationsConfig()
    teacher: SideConfig
    student: SideConfig
    overflow: Literal["truncate", "drop"] = "truncate"
    segment: SegmentConfig = SegmentConfig()
    parser: ParserConfig = ParserConfig()
    mined: Mined | None = None  # MinED's alignment of tokens; `nearest` also says which tokens are nearest to which
    shard_rows: int | None = Field(default=None, ge=1)  # None: chosen from the number of rows

    @property
    def of_conversations(self) -> bool:
        """Whether rows are conversations, which each side renders by its own template; of a resolved config."""
        return self.teacher.template is not None


class ModelConfig(Strict):
    """The model whose hidden states are cached, and how it runs. Numbers depend on all of it."""

    model: Name  # folder or hub id
    revision: Name | None = None
    gguf_file: Name | None = None  # of that folder or repository
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Name = "cpu"
    device_map: Name | None = None  # `auto` and the like: over several devices; `device` is not used then
    quantization: Literal["8bit", "4bit"] | None = None  # by bitsandbytes, if installed
    trust_remote_code: bool = False


class LayerConfig(Strict):
    """One teacher layer (index into `hidden_states`) and the units it works on."""

    layer: int = Field(ge=0)
    granularity: Granularity


class StorageConfig(Strict):
    """Types on disk of signals of vectors."""

    units: Storage = "bf16"
    states: Storage = "bf16"
    final: Storage = "bf16"


_BYTE_SIZE: Final = TypeAdapter(ByteSize)
#: What pydantic takes the beginning of a text for, whatever follows.
_SIZE: Final = re.compile(r"\s*[0-9]*\.?[0-9]+\s*[A-Za-z]*\s*")


def _bytes(value: Any) -> Any:
    """`512MiB`, `2GB` -> bytes; a number as it is."""
    if not isinstance(value, str):
        return value
    if _SIZE.fullmatch(value):
        with suppress(ValidationError):  # an unknown unit
            return int(_BYTE_SIZE.validate_python(value))
    raise ValueError("no size; write it like 512MiB, 2GB or 1000000")


class CacheConfig(Strict):
    """Everything that decides the content of a teacher cache."""

    dataset: Name
    teacher: ModelConfig
    layers: tuple[LayerConfig, ...] = ()
    signals: tuple[Signal, ...] = Field(min_length=1)
    storage: StorageConfig = StorageConfig()
    state_tokens: StateTokens = "covered"  # by the layer's units, or all
    response_only: bool = (
        False  # states and what is of the next token, of the tokens that are learnt and the one before each alone
    )
    weights: Weights = "centrality"  # of tokens
    #: of pairs of units of long documents (`trainer.maths.triangle`); None: all pairs, as in caches older than this key
    window: int | None = Field(default=None, ge=2)
    topk: int = Field(default=64, ge=1)
    sorted: int = Field(default=1024, ge=1)  # probabilities of each distribution; of a smaller vocabulary, all
    token_budget: int = Field(default=4096, ge=16)  # tokens in one batch; may move last bits, so it is recorded
    shard_bytes: Annotated[int, BeforeValidator(_bytes)] = Field(default=1 << 30, ge=1 << 16)  # of one shard, about
    shard_tokens: int = Field(default=1 << 18, ge=1)  # of one shard, at most: what an interruption can cost
    limit: int | None = Field(default=None, ge=1)  # only the dataset's first rows

    def states_are_final(self, layer: int, depth: int) -> bool:
        """Whether a layer's states are what `final` holds, of a teacher of this depth: the same tokens in the same type.

        They are then not kept twice.
        """
        both = layer == depth and {"states", "final"} <= set(self.signals)
        return both and self.state_tokens == "all" and self.storage.states == self.storage.final


class SamplingConfig(Strict):
    """How a token is drawn. As it stands, from the model's whole distribution."""

    greedy: bool = False  # the likeliest token always; nothing else counts then
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)  # 0: all
    seed: int = Field(default=42, ge=0, le=LARGEST_SEED)

    @field_validator("temperature")
    @classmethod
    def _something_is_drawn(cls, temperature: float) -> float:
        if temperature == 0:
            raise ValueError(
                "nothing can be drawn at 0; for the likeliest token always, set `sampling.greedy` (--greedy)"
            )
        return temperature


class GeneratorConfig(ModelConfig):
    """A model that answers. In the shorter types a response depends on its batch."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"


class GenerateConfig(CorpusConfig):
    """Everything that decides the content of a file of responses."""

    model: GeneratorConfig
    backend: Literal["transformers", "vllm"] = "transformers"  # what runs it; each has random numbers of its own
    fields: PromptFieldsConfig = PromptFieldsConfig()
    template: Name | None = None  # a chat template for all rows; None: the model's own, of conversations
    conversations: bool = False  # whether all rows are asked as conversations; found out
    merge_turns: bool = False  # neighbours of one role become one message
    system_into_user: bool = False  # a system prompt stands at the beginning of the first message of the user
    sampling: SamplingConfig = SamplingConfig()
    max_new_tokens: int = Field(default=256, ge=1)  # of a response, the one that ends it included
    max_prompt_length: int | None = Field(default=None, ge=1)  # None: what the model has room for
    unfinished: Literal["drop", "keep"] = "drop"  # responses that did not end by themselves
    batch_size: int = Field(default=16, ge=1)  # may move last bits, so it is recorded
    shard_rows: int | None = Field(default=None, ge=1)  # None: some batches
