"""What is read of a manifest beyond its first level: types and bounds of the mappings that stages fill in.

A manifest keeps those mappings as they were given, and they may hold more than this. Where a finished folder is read,
its manifest must also be one of these, so that whoever uses a value finds it there and in a range that can be.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from schemas.config import CacheConfig, ParseConfig
from schemas.signals import Norm

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: Of anything; sums of them stay exact.
Count = Annotated[int, Field(ge=0, le=2**53)]
#: Far above what any model has, so that more of them is a mistake.
Depth = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=2**20)]
Vocabulary = Annotated[int, Field(ge=1, le=2**24)]


def _not_extreme(value: float) -> float:
    if not 2**-16 <= abs(value) <= 2**16:
        raise ValueError("its magnitude should be between 2^-16 and 2^16")
    return value


#: On logits.
Factor = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_not_extreme)]
SoftCap = Annotated[float, Field(gt=0, le=2**16, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Versions(_Record):
    """Of the packages that a folder was made with."""

    mta_prep: str = Field(alias="mta-prep")


class TokenizerRecord(_Record):
    """One side's tokenizer."""

    name: str
    revision: str | None
    sha256: Sha256
    vocabulary: Vocabulary
    prefix: tuple[str, ...]
    suffix: tuple[str, ...]


class ParserRecord(_Record):
    """What found the constituents."""

    kind: str
    name: str
    sha256: str


class Tokenizers(_Record):
    """Both sides'."""

    teacher: TokenizerRecord
    student: TokenizerRecord


class UnitCounts(_Record):
    """Units of one granularity on one side, by what became of them."""

    kept: Count
    inside: Count
    cut: Count


class SideCounts(_Record):
    """Units of one side."""

    words: UnitCounts
    chunks: UnitCounts
    phrases: UnitCounts


class Alignment(_Record):
    """Units of each side, and those that are on both."""

    teacher: SideCounts
    student: SideCounts
    both: SideCounts


class OffsetCounts(_Record):
    """Tokens of each side, by how they were found in the text."""

    teacher: dict[str, Count]
    student: dict[str, Count]


class FieldCounts(_Record):
    """Rows in which a field was read, and in which one that might have been was not."""

    used: dict[str, Count]
    unused: dict[str, Count]


class RepeatedIds(_Record):
    """Rows with the id of an earlier row, and some such ids."""

    rows: Count
    examples: list[str]


class MinedCounts(_Record):
    """The student's tokens before a learnt one, and how many of them have a partner of the teacher's by edit distance."""

    tokens: Count
    partners: Count


class LearntCounts(_Record):
    """Learnt tokens of each side, and how many of them cover the same text as one of the other side."""

    teacher: Count
    student: Count
    exact: Count


class DatasetCounts(_Record):
    """Of fields, ids, sentences, units and tokens. Older datasets lack the last two."""

    fields: FieldCounts
    repeated_ids: RepeatedIds
    sentences: dict[str, Count]
    offsets: OffsetCounts
    alignment: Alignment
    learnt: LearntCounts | None = None
    shared_tokens: Count | None = None  # of both vocabularies
    mined: MinedCounts | None = None


class DatasetRecord(_Record):
    """A dataset's manifest, as deep as it is read."""

    versions: Versions
    config: ParseConfig
    tokenizers: Tokenizers
    parser: ParserRecord
    counts: DatasetCounts
    vocabulary: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _counts_its_partners(self) -> "DatasetRecord":
        if (self.config.mined is None) != (self.counts.mined is None):
            raise ValueError("counts of `mined` go with `mined` of the config")
        return self

    @model_validator(mode="after")
    def _counts_its_vocabulary(self) -> "DatasetRecord":
        if self.vocabulary is not None and None in (self.counts.learnt, self.counts.shared_tokens):
            raise ValueError("counts of `learnt` and `shared_tokens` go with `vocabulary`")
        return self


class TeacherRecord(_Record):
    """Who the teacher of a cache is, and its sizes."""

    name: str
    revision: str | None
    sha256: Sha256
    architecture: str
    depth: Depth
    hidden_size: Width
    vocabulary: Vocabulary
    final_size: Width | None = None  # where the last hidden state has other features
    embedding_size: Width | None = None  # where token embeddings have other features


class LogitsRecord(_Record):
    """What a teacher does to its logits behind its output matrix."""

    soft_cap: SoftCap | None
    scale: Factor | None


class NormRecord(_Record):
    """What norm a teacher has behind its last layer."""

    kind: Norm | Literal["none"]  # none that is known
    epsilon: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None

    @model_validator(mode="after")
    def _has_epsilon(self) -> "NormRecord":
        if (self.kind == "none") != (self.epsilon is None):
            raise ValueError("a norm, and it alone, has an `epsilon`")
        return self


class LayerRecord(_Record):
    """How much a cache holds of one layer."""

    units: Count
    pairs: Count
    state_tokens: Count
    units_without_span: Count


class CacheCounts(_Record):
    """Layers by their number."""

    layers: dict[int, LayerRecord]
    learnt: Count  # tokens of which `final` and its kin are kept


class CacheRecord(_Record):
    """A teacher cache's manifest, as deep as it is read."""

    versions: Versions
    config: CacheConfig
    teacher: TeacherRecord
    logits: LogitsRecord | None
    norm: NormRecord | None = None  # of caches older than this key, not known
    head: dict[str, Any] | None
    embeddings: dict[str, Any] | None = None
    tied_embeddings: bool = False
    counts: CacheCounts

    @model_validator(mode="after")
    def _fits_its_config(self) -> "CacheRecord":
        layers = [each.layer for each in self.config.layers]
        if sorted(layers) != sorted(self.counts.layers):
            raise ValueError(f"counts of layers {sorted(self.counts.layers)}, but its config has {layers}")
        if max(layers, default=0) > self.teacher.depth:
            raise ValueError(f"layer {max(layers)} of a teacher of {self.teacher.depth}")
        for name, part in (("head", self.head), ("logits", self.logits)):
            if (part is None) == ("final" in self.config.signals):
                raise ValueError(f"`{name}` and the signal `final` go together")
        if self.norm is not None and self.head is None:
            raise ValueError("`norm` is that of `head`, which there is none of")
        if ("embeddings" in self.config.signals) != (self.tied_embeddings or self.embeddings is not None):
            raise ValueError("the signal `embeddings` goes together with the file of that name or `tied_embeddings`")
        if self.tied_embeddings and (self.head is None or self.embeddings is not None):
            raise ValueError("`tied_embeddings` are those in `head`, and have no file of their own")
        return self
