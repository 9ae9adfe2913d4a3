"""Which student layer goes with which teacher layer (MTA, arXiv 2605.01374)."""

from collections.abc import Mapping

from schemas.columns import Granularity
from schemas.errors import UsageError
from schemas.training import PairConfig


def teacher_layer(layer: int, student_depth: int, teacher_depth: int) -> int:
    """The partner of a student's layer: floor(l · N_T / N_S)."""
    return layer * teacher_depth // student_depth


def automatic_pairs(
    layers: Mapping[int, Granularity], student_depth: int, teacher_depth: int
) -> tuple[PairConfig, ...]:
    """Teacher layers, each with the student layer whose partner it is; where it is no layer's partner, with the nearest.

    Raises `UsageError` if two teacher layers would get the same student layer.
    """
    found: dict[int, PairConfig] = {}
    for layer, granularity in sorted(layers.items()):
        student = round(layer * student_depth / teacher_depth)
        exact = [
            each for each in range(student_depth + 1) if teacher_layer(each, student_depth, teacher_depth) == layer
        ]
        if exact and student not in exact:
            student = min(exact, key=lambda each: abs(each - student))
        if student in found:
            raise UsageError(
                f"Teacher layers {found[student].teacher} and {layer} both fall to layer {student} of a student of "
                f"{student_depth} layers; say in `layers` which pairs to use."
            )
        found[student] = PairConfig(student=student, teacher=layer, granularity=granularity)
    return tuple(found.values())
