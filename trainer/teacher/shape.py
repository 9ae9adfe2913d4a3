"""How deep and wide a teacher is, known without its weights."""

from dataclasses import dataclass
from typing import Any

from schemas.config import ModelConfig
from schemas.errors import UserError
from schemas.manifest import CacheManifest
from trainer.models.hub import locate


@dataclass(frozen=True)
class TeacherShape:
    """Sizes of a teacher."""

    depth: int  # decoder layers: `hidden_states` has indices 0 (embeddings) to depth
    hidden_size: int
    vocabulary: int
    architecture: str
    dtype: str  # as it is loaded, if it says so itself
    final_size: int | None = None  # features of the last hidden state, where they are not `hidden_size`
    embedding_size: int | None = None  # of a token's input embedding, where they are not `hidden_size`
    tied: bool = False  # whether its input embeddings are its output matrix

    @property
    def number_bytes(self) -> int:
        """Bytes of one of its weights."""
        return 4 if self.dtype == "float32" else 2

    def width(self, layer: int | None) -> int:
        """Features of a layer's hidden states; None: of `final`."""
        last = layer is None or layer == self.depth
        return self.final_size if last and self.final_size is not None else self.hidden_size

    @property
    def embedding_width(self) -> int:
        """Features of a token's input embedding."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @classmethod
    def recorded(cls, manifest: CacheManifest) -> "TeacherShape":
        """Of a cache's teacher."""
        teacher = manifest.teacher
        return cls(
            depth=int(teacher["depth"]),
            hidden_size=int(teacher["hidden_size"]),
            vocabulary=int(teacher["vocabulary"]),
            architecture=str(teacher["architecture"]),
            dtype=ModelConfig.parse(manifest.config["teacher"], "the manifest").dtype,
            final_size=teacher.get("final_size"),
            embedding_size=teacher.get("embedding_size"),
            tied=manifest.tied_embeddings,
        )

    def identity(self) -> dict[str, Any]:
        """What belongs into a manifest."""
        odd = {"final_size": self.final_size, "embedding_size": self.embedding_size}
        return {
            "architecture": self.architecture,
            "depth": self.depth,
            "hidden_size": self.hidden_size,
            "vocabulary": self.vocabulary,
            **{name: size for name, size in odd.items() if size is not None},
        }


def shape_of(config: ModelConfig) -> TeacherShape:
    """What a model's config says of it, and the model built of it without memory: no weights are read.

    Raises `UserError` if there is no such model, or it is no causal language model.
    """
    import torch  # here, since what is known of a teacher otherwise needs none of these, and they take seconds
    import transformers

    from trainer.models.loading import description, explained

    source = locate(config)
    subject = f"The teacher {config.model!r}"
    described = description(config, source, subject)
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # bad files make the library raise anything from KeyError to RuntimeError
        raise explained(error, subject, config, source) from error
    text = described.get_text_config(decoder=True)
    architectures = described.architectures or (type(model).__name__,)
    own = "float32" if source.gguf_file is not None else str(described.dtype or "float32").removeprefix("torch.")
    size = int(text.hidden_size)
    head = getattr(model.get_output_embeddings(), "weight", None)
    last_size = size if head is None else int(head.shape[-1])
    embeddings = _embeddings(model)
    embedding_size = size if embeddings is None else int(embeddings.shape[-1])
    return TeacherShape(
        depth=int(text.num_hidden_layers),
        hidden_size=size,
        vocabulary=int(text.vocab_size),
        architecture=str(architectures[0]),
        dtype=own if config.dtype == "auto" else config.dtype,
        final_size=None if last_size == size else last_size,
        embedding_size=None if embedding_size == size else embedding_size,
        tied=embeddings is not None and embeddings is head,
    )


def _embeddings(model: Any) -> Any:
    """A model's input embeddings; None where there are none to be had, which matters to those alone who ask for them."""
    from trainer.models.loading import embedding_matrix

    try:
        return embedding_matrix(model)
    except UserError:
        return None
