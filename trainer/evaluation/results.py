"""The file that an evaluation leaves: scores by file and seed, and by row for comparisons."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from schemas.config import Strict
from schemas.errors import UserError
from trainer.evaluation.bootstrap import interval, resampled_means

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
    "merge_turns",
    "system_into_user",
    "rouge_tokenizer",
)
_OF_SAMPLING: Final = frozenset({"temperature", "top_p", "top_k"})


class HeldOutResult(Strict):
    """In nats a token, over all response tokens together; `perplexity` is e to that."""

    dataset: str
    fingerprint: str
    rows: int
    tokens: int
    loss: float
    perplexity: float


class Score(Strict):
    """A measure in percent: its mean over rows with each seed, and over seeds the mean and standard deviation of that."""

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
    wordless: int  # rows of whose references no token is left for ROUGE-L, which is 0 there
    rouge_l: Score
    exact_match: Score
    tokens: float  # of a response, without the stop token
    stopped: float  # part of the responses that ended by themselves
    reasoned: float  # part of the responses with reasoning, of which what stands behind `</think>` is scored
    unanswered: float  # part of the responses whose reasoning did not end: their answer is empty
    row_numbers: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]  # ROUGE-L by row, by seed
    matches: tuple[tuple[bool, ...], ...]  # likewise, exact match
    texts: tuple[tuple[str, ...], ...] | None = None  # likewise, reasoning included


class Means(Strict):
    """Over files, each with the same weight."""

    rouge_l: Score
    exact_match: Score

    @classmethod
    def of(cls, files: "Sequence[FileResult]") -> "Means | None":
        """None where there are not several files."""
        if len(files) < 2:
            return None
        measures = ([file.rouge_l for file in files], [file.exact_match for file in files])
        rouge_l, matched = (np.mean([score.per_seed for score in scores], axis=0).tolist() for scores in measures)
        return cls(rouge_l=Score.of(rouge_l), exact_match=Score.of(matched))


class Result(Strict):
    """Everything an evaluation has to tell."""

    format: Literal["mta-prep/evaluation"] = FORMAT
    format_version: Literal[2] = 2
    model: dict[str, Any]
    template: dict[str, Any] | None = None  # the chat template of the conversations, where some were asked
    config: dict[str, Any]
    versions: dict[str, str]
    files: tuple[FileResult, ...] = ()
    mean: Means | None = None
    held_out: HeldOutResult | None = None


class Difference(Strict):
    """A measure of B less that of A on a file's rows, or on all files with the same weight; in percent."""

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


class Differences(Strict):
    """Of one measure, file by file, and over all of them if there are several."""

    files: tuple[Difference, ...]
    mean: Difference | None


class Comparison(Strict):
    """Two results by each measure."""

    a: str
    b: str
    unlike: tuple[Unlike, ...]
    samples: int = Field(ge=1)
    seed: int
    rouge_l: Differences
    exact_match: Differences


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
            f"{path} is no result of `mta-prep evaluate run --out` ({place + ': ' if place else ''}{first['msg']})."
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
    pairs = []
    for file in first.files:
        other = next(each for each in second.files if each.name == file.name)
        if (file.sha256, file.row_numbers) != (other.sha256, other.row_numbers):
            raise UserError(
                f"{a} and {b} have different rows of {file.name} ({file.rows} and {other.rows}); evaluate both models on the "
                "same file, with the same --limit and --min-words."
            )
        pairs.append((file, other))
    return Comparison(
        a=str(a),
        b=str(b),
        unlike=_unlike(first, second),
        samples=samples,
        seed=seed,
        rouge_l=_differences(pairs, lambda file: np.array(file.scores), samples, seed),
        exact_match=_differences(pairs, lambda file: 100.0 * np.array(file.matches), samples, seed),
    )


def _differences(
    pairs: Sequence[tuple[FileResult, FileResult]],
    measure: Callable[[FileResult], np.ndarray],
    samples: int,
    seed: int,
) -> Differences:
    """Of results on the same files; `measure` has a value for each row and seed."""
    differences, drawn = [], []
    for number, pair in enumerate(pairs):
        scores = [measure(file).mean(1) for file in pair]
        means = resampled_means(scores[1] - scores[0], samples, (seed, number))
        differences.append(_difference(pair[0].name, pair[0].rows, [float(score.mean()) for score in scores], means))
        drawn.append(means)
    total = None
    if len(differences) > 1:
        ours = [float(np.mean([getattr(difference, side) for difference in differences])) for side in ("a", "b")]
        rows = sum(difference.rows for difference in differences)
        total = _difference("mean", rows, ours, np.mean(drawn, axis=0))
    return Differences(files=tuple(differences), mean=total)


def _unlike(a: Result, b: Result) -> tuple[Unlike, ...]:
    greedy = a.config.get("seeds") is None and b.config.get("seeds") is None
    settings = [name for name in _DECISIVE if not (greedy and name in _OF_SAMPLING)]
    pairs = {name: (a.config.get(name), b.config.get(name)) for name in settings}
    pairs["rouge-score"] = (a.versions.get("rouge-score"), b.versions.get("rouge-score"))
    return tuple(Unlike(setting=name, a=ours, b=theirs) for name, (ours, theirs) in pairs.items() if ours != theirs)


def _difference(name: str, rows: int, means: Sequence[float], resampled: np.ndarray) -> Difference:
    a, b = means
    return Difference(name=name, rows=rows, a=a, b=b, difference=b - a, **interval(resampled)._asdict())
