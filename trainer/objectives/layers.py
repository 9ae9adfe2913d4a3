"""Terms that compare a student's layers with a teacher's: which pairs, those of the term itself or the run's."""

from typing import ClassVar

from pydantic import Field

from schemas.training import PairConfig
from trainer.objectives.base import Objective, Options, Setting


class LayerOptions(Options):
    """What the config of every term on layers has."""

    layers: tuple[PairConfig, ...] | None = Field(default=None, min_length=1)  # None: the run's


class LayerTerm(Objective):
    """A term on layers, to be derived from beside `StateObjective` or `LogitObjective`."""

    options: ClassVar[type[Options]] = LayerOptions

    def __init__(self, options: LayerOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.pairs = setting.pairs if options.layers is None else options.layers

    def student_layers(self) -> tuple[int, ...]:
        """Those of its pairs."""
        return tuple(sorted({pair.student for pair in self.pairs}))
