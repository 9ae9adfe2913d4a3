"""The terms of a run's loss, built for its student, its teacher and its datasets, and what they need of the teacher."""

from collections.abc import Mapping
from typing import Any

import torch

from schemas.errors import UsageError
from schemas.training import DEFAULT_DATA, PairConfig, TrainConfig
from trainer.batches.documents import Documents
from trainer.objectives import build, on_run_layers
from trainer.objectives.base import LogitObjective, Objective, Setting
from trainer.student.model import Student
from trainer.teacher.cached import signals_of
from trainer.teacher.caches import Caches
from trainer.teacher.needs import TeacherNeeds, teacher_needs
from trainer.teacher.pairing import automatic_pairs
from trainer.teacher.shape import TeacherShape, shape_of


def terms_of(config: TrainConfig, student: Student, datasets: Mapping[str, Caches]) -> dict[str, Objective]:
    """In the config's order. Raises `UsageError` as `trainer.objectives.build`, for layers that a model does not have, and for
    a dataset that does not say what a term must know of it."""
    shape = teacher_shape(config, datasets)
    pairs = _pairs(config, student, shape, datasets)
    settings = {name: _setting(config, student, shape, pairs, caches.documents) for name, caches in datasets.items()}
    first = settings.pop(DEFAULT_DATA)
    terms = build(config.objectives, first, "objectives", settings)
    if config.layers is None and config.teacher == "cached" and (fewer := _on_fewer_layers(config, terms, datasets)):
        terms = build({**config.objectives, **fewer}, first, "objectives", settings)
    if any(term.attention_layers() for term in terms.values()):
        student.require_attention()
    for name, term in terms.items():
        needs = term.needs()
        if isinstance(term, LogitObjective) and term.normed.student:
            student.require_norm(f"objectives.{name}")
        for documents in (datasets[data].documents for data in term.datasets):
            if needs.shared:
                documents.require_vocabulary(f"The term `{name}`")
            if needs.mined is not None:
                documents.require_mined(f"The term `{name}`", needs.mined.vocabulary)
    return terms


def teacher_shape(config: TrainConfig, datasets: Mapping[str, Caches]) -> TeacherShape | None:
    """None where there is no teacher."""
    if config.teacher == "live":
        assert config.teacher_model is not None
        return shape_of(config.teacher_model)
    taught = next((caches for caches in datasets.values() if caches.caches), None)
    return None if taught is None else TeacherShape.recorded(taught.caches[0].manifest)


def needs_of(
    config: TrainConfig, terms: Mapping[str, Objective], datasets: Mapping[str, Caches]
) -> dict[str, TeacherNeeds]:
    """What batches of each dataset must hold of the teacher. Raises `UsageError` as `teacher_needs`."""
    needs = {}
    for data, caches in datasets.items():
        mine = {name: term for name, term in terms.items() if data in term.datasets}
        pairs = [pair for term in mine.values() for pair in term.pairs]
        wanted = {name: term.needs() for name, term in mine.items()}
        needs[data] = teacher_needs(wanted, pairs, config.weights, caches.documents)
    return needs


def _pairs(
    config: TrainConfig, student: Student, shape: TeacherShape | None, datasets: Mapping[str, Caches]
) -> tuple[PairConfig, ...]:
    """The run's, lowest first: without any in the config, of the first dataset whose caches have layers."""
    pairs: tuple[PairConfig, ...] = config.layers or ()
    layers = next((caches.layers for caches in datasets.values() if caches.layers), {})
    if config.layers is None and on_run_layers(config.objectives) and shape is not None and layers:
        pairs = automatic_pairs(layers, student.depth, shape.depth)
    for pair in pairs:
        if pair.student > student.depth:
            raise UsageError(f"`layers`: the student has layers 0 (embeddings) to {student.depth}, not {pair.student}.")
        if shape is not None and pair.teacher > shape.depth:
            raise UsageError(f"`layers`: the teacher has layers 0 (embeddings) to {shape.depth}, not {pair.teacher}.")
    return tuple(sorted(pairs, key=lambda pair: pair.student))


def _on_fewer_layers(
    config: TrainConfig, terms: Mapping[str, Objective], datasets: Mapping[str, Caches]
) -> dict[str, dict[str, Any]]:
    """Options of terms that name no layers, and have their signals of some of the caches' layers alone: with those layers."""
    options = {}
    for name, term in terms.items():
        signals = {layer: signals_of(needs) for layer, needs in term.needs().layers.items()}
        caches = [datasets[data] for data in term.datasets]
        pairs = [pair for pair in term.pairs if all(each.has(pair.teacher, signals[pair.teacher]) for each in caches)]
        if on_run_layers({name: config.objectives[name]}) and 0 < len(pairs) < len(term.pairs):
            options[name] = {**config.objectives[name], "layers": [pair.model_dump() for pair in pairs]}
    return options


def _setting(
    config: TrainConfig,
    student: Student,
    shape: TeacherShape | None,
    pairs: tuple[PairConfig, ...],
    documents: Documents,
) -> Setting:
    """What terms on a dataset are built for."""
    vocabulary = documents.vocabulary
    return Setting(
        pairs=pairs,
        student_size=student.hidden_size,
        teacher_size=shape.hidden_size if shape is not None else student.hidden_size,
        student_weights=config.weights,
        student_last=(student.depth, student.head.in_features),
        teacher_last=None if shape is None else (shape.depth, shape.width(None)),
        same_tokens=documents.same_tokens,
        student_embedding=int(student.model.get_input_embeddings().weight.shape[1]),
        shared=None if vocabulary is None else vocabulary.shared,
        nearest=None if vocabulary is None or vocabulary.nearest is None else torch.from_numpy(vocabulary.nearest),
    )
