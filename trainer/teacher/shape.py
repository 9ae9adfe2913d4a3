"""How deep and wide a teacher is, known without its weights."""

from dataclasses import dataclass

from schemas.config import ModelConfig
from trainer.models.hub import locate
from trainer.models.loading import description
from trainer.teacher.caches import Caches


@dataclass(frozen=True)
class TeacherShape:
    """Sizes of a teacher."""

    depth: int  # decoder layers: `hidden_states` has indices 0 (embeddings) to depth
    hidden_size: int
    final_size: int  # features of the last hidden states, which may be others (OPT-350m's)


def shape_of_model(config: ModelConfig) -> TeacherShape:
    """Of a live teacher, out of its config. Raises `UserError` and its kin for a model that cannot be found."""
    text = description(config, locate(config), f"The teacher {config.model!r}").get_text_config(decoder=True)
    final_size = getattr(text, "word_embed_proj_dim", text.hidden_size)  # OPT's
    return TeacherShape(int(text.num_hidden_layers), int(text.hidden_size), int(final_size))


def shape_of_caches(caches: Caches) -> TeacherShape | None:
    """Of the teacher of some caches; None where there are none."""
    if not caches.caches:
        return None
    teacher = caches.teacher
    size = int(teacher["hidden_size"])
    return TeacherShape(int(teacher["depth"]), size, int(teacher.get("final_size", size)))
