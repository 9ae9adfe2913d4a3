"""What to cache: recipes, and the rule that gives a student's layers their teacher layers, as a `CacheConfig`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from schemas.columns import GRANULARITIES, Granularity
from schemas.config import CacheConfig, LayerConfig
from schemas.errors import UsageError, quoted
from schemas.signals import LAYER_SIGNALS, RECIPES, WINDOW, Signal, StateTokens
from trainer.teacher.pairing import teacher_layer
from trainer.teacher.shape import TeacherShape

#: Of the number of a layer.
_DIGITS: Final = 9

#: Recipes whose losses look at tokens outside of units as well: FDD and SRA, at all that are learnt.
STATE_TOKENS: Final[dict[str, StateTokens]] = {"fdd": "all", "sra": "all"}
#: Recipes whose losses look at nothing but what is learnt.
RESPONSE_ONLY: Final = frozenset({"fdd", "logits", "sra", "dskd", "dskd-eta", "dwa", "gold", "uld"})
#: Recipes whose methods work on the last layer, if no other is asked for.
LAST_LAYER: Final = frozenset({"sra"})
DEFAULT_RECIPE: Final = "mta"


@dataclass(frozen=True)
class Choice:
    """What the command line says of signals and layers; None where it says nothing."""

    recipe: str | None = None
    signals: str | None = None
    layers: str | None = None
    student_layers: str | None = None
    student_depth: int | None = None


def stated(values: dict[str, Any], where: str, choice: Choice, same_tokens: bool) -> tuple[CacheConfig, list[str]]:
    """All of the config that is known without a look at the teacher, and what the user should be told of the choices made
    for them.

    `values`: of the config file, with all other flags merged in; `choice` goes before it. `same_tokens`: whether the
    dataset's two sides have the same tokens. Raises `UsageError` for a choice that is none, or contradicts itself.
    """
    notes: list[str] = []
    values = dict(values)
    if choice.recipe is not None and choice.signals is not None:
        raise UsageError("--recipe and --signals both say what to cache; pass one of them.")
    recipe = choice.recipe or (DEFAULT_RECIPE if choice.signals is None and "signals" not in values else None)
    if recipe is not None:
        values["signals"], dropped = _of_recipe(recipe, same_tokens)
        if dropped:
            notes.append(
                "The dataset's teacher and student tokens differ, so the recipe `mta` has no loss on hidden states of "
                "tokens: `states` are left out (--signals relations,states keeps them; --signals relations,units "
                "serves a loss on units)."
            )
        values.setdefault("state_tokens", STATE_TOKENS.get(recipe, "covered"))
        values.setdefault("response_only", recipe in RESPONSE_ONLY)
    elif choice.signals is not None:
        values["signals"] = _words(choice.signals)
    values.setdefault("window", WINDOW)
    _require_one_voice(choice)
    if choice.layers is not None and choice.layers != "auto":
        values["layers"] = listed_layers(choice.layers)
    config = CacheConfig.parse(values, where)
    order = [signal for signal in get_args(Signal) if signal in config.signals]
    return config.model_copy(update={"signals": tuple(order)}), notes


def resolved(config: CacheConfig, choice: Choice, shape: TeacherShape) -> CacheConfig:
    """The full config: what `stated` gave, and the teacher's layers.

    Raises `UsageError` for signals and layers that do not fit each other or the teacher.
    """
    layers = config.layers
    if choice.student_layers is not None and choice.student_depth is not None:
        layers = mapped_layers(_numbers(choice.student_layers), choice.student_depth, shape.depth)
    elif choice.layers == "auto":
        layers = automatic_layers(shape.depth)
    elif "layers" not in config.model_fields_set and LAYER_SIGNALS & set(config.signals):
        layers = automatic_layers(shape.depth)[-1 if choice.recipe in LAST_LAYER else 0 :]
    config = config.model_copy(
        update={"layers": _in_order(layers), "sorted": min(config.sorted, shape.vocabulary)}  # all there are
    )
    _check(config, shape)
    return config


def _of_recipe(name: str, same_tokens: bool) -> tuple[tuple[Signal, ...], bool]:
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}; there are {', '.join(RECIPES)}.")
    signals = RECIPES[name]
    if name == "mta" and not same_tokens:
        return tuple(signal for signal in signals if signal != "states"), True
    return signals, False


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]


def _require_one_voice(choice: Choice) -> None:
    """Raises `UsageError` unless layers are chosen in one way, and whole."""
    if (choice.student_layers is None) != (choice.student_depth is None):
        raise UsageError("--student-layers and --student-depth go together: layer l of a student of depth N.")
    if choice.student_layers is not None and choice.student_depth is not None:
        if choice.layers is not None:
            raise UsageError("--layers and --student-layers both say which layers to cache; pass one of them.")
        _require_within(_numbers(choice.student_layers), choice.student_depth)


def _numbers(student_layers: str) -> list[int]:
    return [_number(word, "--student-layers") for word in _words(student_layers)]


def _require_within(student: Sequence[int], student_depth: int) -> None:
    if not student or max(student) > student_depth:
        raise UsageError(
            f"--student-layers are from 0 to --student-depth, {student_depth}; got {sorted(set(student)) or 'none'}."
        )


def listed_layers(text: str) -> tuple[LayerConfig, ...]:
    """`24:words,36:chunks` -> those layers."""
    found = []
    for word in _words(text):
        layer, _, granularity = word.partition(":")
        if granularity not in GRANULARITIES:
            raise UsageError(
                f"--layers: {word!r} is no layer with its units; write them as 24:words,36:chunks, with units out of "
                f"{', '.join(GRANULARITIES)}, or `auto`."
            )
        found.append(LayerConfig(layer=_number(layer, "--layers"), granularity=granularity))
    return tuple(found)


def _number(word: str, flag: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > _DIGITS:
        raise UsageError(f"{flag}: {quoted(word)} is no layer; layers are numbers from 0, the embeddings.")
    return int(word)


def mapped_layers(student: Sequence[int], student_depth: int, teacher_depth: int) -> tuple[LayerConfig, ...]:
    """Teacher layers of a student's: floor(l · N_T / N_S); the lowest one of words, the rest of chunks (MTA)."""
    _require_within(student, student_depth)
    lowest_first = sorted(set(student))
    pairs = [(teacher_layer(layer, student_depth, teacher_depth), layer) for layer in lowest_first]
    return tuple(
        LayerConfig(layer=teacher, granularity=_granularity(layer == lowest_first[0])) for teacher, layer in pairs
    )


def automatic_layers(depth: int) -> tuple[LayerConfig, ...]:
    """Half, three quarters and all of the depth: words, chunks, chunks."""
    layers = sorted({max(depth // 2, 1), max(3 * depth // 4, 1), depth})
    return tuple(LayerConfig(layer=layer, granularity=_granularity(layer == layers[0])) for layer in layers)


def _granularity(lowest: bool) -> Granularity:
    return "words" if lowest else "chunks"


def _in_order(layers: tuple[LayerConfig, ...]) -> tuple[LayerConfig, ...]:
    found: dict[int, LayerConfig] = {}
    for each in layers:
        if found.setdefault(each.layer, each) != each:
            raise UsageError(
                f"Teacher layer {each.layer} is asked for with {found[each.layer].granularity} and with "
                f"{each.granularity}; a cache has one kind of units a layer, so make two caches or choose one."
            )
    return tuple(found[layer] for layer in sorted(found))


def _check(config: CacheConfig, shape: TeacherShape) -> None:
    name = config.teacher.model
    wanting = [signal for signal in config.signals if signal in LAYER_SIGNALS]
    if wanting and not config.layers:
        raise UsageError(f"`{wanting[0]}` is kept of chosen layers, and none is chosen; pass --layers.")
    if config.layers and not wanting:
        raise UsageError(
            f"{', '.join(config.signals)} {'is' if len(config.signals) == 1 else 'are'} kept once a document, not of "
            "layers; leave --layers out, or add signals of layers."
        )
    deepest = max((each.layer for each in config.layers), default=0)
    if deepest > shape.depth:
        raise UsageError(f"The teacher {name!r} has layers 0 (embeddings) to {shape.depth}, not {deepest}.")
    if "attention" in config.signals and config.layers[0].layer == 0:
        raise UsageError("Layer 0 is the embeddings, which attend to nothing; leave it out, or the signal `attention`.")
    if "topk" in config.signals and config.topk > shape.vocabulary:
        raise UsageError(f"--topk {config.topk} is more than the {shape.vocabulary} tokens of the teacher {name!r}.")
