"""The file that an evaluation leaves: scores by file and seed, and by row for comparisons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from schemas.config import Strict
from schemas.errors import UserError
from trainer.evaluation.bootstrap import interval, resampled_means
from trainer.evaluation.perplexity import HeldOutResult

FORMAT: Final = "mta-prep/evaluation"
#: Of a result's config, what decides scores; the rest is of speed, or shows in the rows.
_DECISIVE: Final = (
    "seeds",
    "temperature",
    "top_p",
    "top_k",
    "max_length",
    "max_prompt_length",
    "dtype",
    "template",
    "rouge_tokenizer",
)
_OF_SAMPLING: Final = frozenset({"temperature", "top_p", "top_k"})


class Score(Strict):
    """A score in percent: its mean over rows with each seed, and over seeds the mean and standard deviation of that."""

    mean: float
    deviation: float | None  # n − 1 in the denominator; None with a single seed
    per_seed: tuple[float, ...]

    @classmethod
    def of(cls, per_seed: Sequence[float]) -> "Score":
        """From the mean with each seed."""
        deviation = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None
        return cls(mean=float(np.mean(per_seed)), deviation=deviation, per_seed=tuple(map(float, per_seed)))


class FileResult(Strict):
    """What came of one file of test rows."""

    name: str
    rows: int
    sha256: str  # of the rows as used
    cut_prompts: int  # rows whose prompt lost its beginning
    rouge_l: Score
    exact_match: Score
    wordless: int  # rows of whose references no token is left for ROUGE-L
    tokens: float  # of a response, without the stop token
    stopped: float  # part of the responses that ended by themselves
    row_numbers: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]  # by row, by seed
    texts: tuple[tuple[str, ...], ...] | None = None  # likewise


class Result(Strict):
    """Everything an evaluation has to tell."""

    format: Literal["mta-prep/evaluation"] = FORMAT
    format_version: Literal[2] = 2
    model: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]
    files: tuple[FileResult, ...] = ()
    mean: Score | None = None  # over files, each with the same weight
    held_out: HeldOutResult | None = None


class Difference(Strict):
    """B's ROUGE-L less A's on a file's rows, or on all files with the same weight."""

    name: str
    rows: int
    a: float
    b: float
    difference: float
    low: float  # of the 95 % interval
    high: float
    p_value: float


class Unlike(Strict):
    """A setting that decides scores, and is not the same in both results."""

    setting: str
    a: Any
    b: Any


class Comparison(Strict):
    """Two results, file by file, and over all of them if there are several."""

    a: str
    b: str
    unlike: tuple[Unlike, ...]
    samples: int = Field(ge=1)
    seed: int
    files: tuple[Difference, ...]
    mean: Difference | None


def read_result(path: Path) -> Result:
    """Raises `UserError` for a file that is no evaluation's."""
    try:
        return Result.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path} is no result of `evaluate.py run --out` ({place + ': ' if place else ''}{first['msg']})."
        ) from None


def compare(a: Path, b: Path, samples: int, seed: int) -> Comparison:
    """Paired bootstrap over rows, each row's score being its mean over seeds.

    Settings may differ (what does sampling cost?), and are told then: the interval is of model and settings together.
    Raises `UserError` if the two have not the same files with the same rows.
    """
    first, second = read_result(a), read_result(b)
    names = [[file.name for file in result.files] for result in (first, second)]
    if not names[0] or sorted(names[0]) != sorted(names[1]):
        raise UserError(
            f"{a} and {b} are results on different files ({', '.join(names[0]) or 'none'}; {', '.join(names[1]) or 'none'}); "
            "evaluate both models on the same ones."
        )
    found, drawn = [], []
    for number, file in enumerate(first.files):
        other = next(each for each in second.files if each.name == file.name)
        if (file.sha256, file.row_numbers) != (other.sha256, other.row_numbers):
            raise UserError(
                f"{a} and {b} have different rows of {file.name} ({file.rows} and {other.rows}); evaluate both models on the "
                "same file, with the same --limit and --min-words."
            )
        scores = [np.array(each.scores).mean(1) for each in (file, other)]
        means = resampled_means(scores[1] - scores[0], samples, (seed, number))
        found.append(_difference(file.name, file.rows, [float(each.mean()) for each in scores], means))
        drawn.append(means)
    total = None
    if len(found) > 1:
        ours = [float(np.mean([getattr(each, side) for each in found])) for side in ("a", "b")]
        total = _difference("mean", sum(each.rows for each in found), ours, np.mean(drawn, axis=0))
    unlike = _unlike(first, second)
    return Comparison(a=str(a), b=str(b), unlike=unlike, samples=samples, seed=seed, files=tuple(found), mean=total)


def _unlike(a: Result, b: Result) -> tuple[Unlike, ...]:
    greedy = a.config.get("seeds") is None and b.config.get("seeds") is None
    settings = [name for name in _DECISIVE if not (greedy and name in _OF_SAMPLING)]
    pairs = {name: (a.config.get(name), b.config.get(name)) for name in settings}
    pairs["rouge-score"] = (a.versions.get("rouge-score"), b.versions.get("rouge-score"))
    return tuple(Unlike(setting=name, a=ours, b=theirs) for name, (ours, theirs) in pairs.items() if ours != theirs)


def _difference(name: str, rows: int, means: Sequence[float], resampled: np.ndarray) -> Difference:
    a, b = means
    return Difference(name=name, rows=rows, a=a, b=b, difference=b - a, **interval(resampled)._asdict())
