"""What an evaluation and a comparison show at the terminal: a column for each file, as published tables have it."""

import json
from collections.abc import Callable

from schemas import console
from trainer.evaluation.results import Comparison, Difference, FileResult, HeldOutResult, Means, Result, Score

Measure = Callable[[FileResult | Means], Score]


def show(result: Result) -> None:
    """Tables of scores and of held-out loss, as far as there are any."""
    name = result.model["name"]
    if result.files:
        _show_files(f"{name}: {_how(result)}", result)
    if result.held_out is not None:
        _show_held_out(name, result.held_out)


def warn(result: Result) -> None:
    """What makes a score less than it seems."""
    for file in result.files:
        if file.wordless:
            rows = console.counted(file.wordless, "row")
            remedy = "; --rouge-tokenizer multilingual sees the words of all scripts" if _is_field_s(result) else ""
            console.stderr.print(
                f"{file.name}: of {rows} no reference has a word that ROUGE-L sees, so nothing scores there{remedy}."
            )


def show_comparison(comparison: Comparison) -> None:
    """One line for each file and measure."""
    if comparison.unlike:
        settings = "; ".join(
            f"{unlike.setting} {json.dumps(unlike.a)} and {json.dumps(unlike.b)}" for unlike in comparison.unlike
        )
        console.stderr.print(
            f"A and B were not evaluated alike ({settings}), so they differ by more than their models."
        )
    measures = {"ROUGE-L": comparison.rouge_l, "EM": comparison.exact_match}
    console.table(
        f"{comparison.samples:,} resamples",
        ["", "measure", "rows", "A", "B", "B − A", "95 % interval", "p"],
        [
            _compared(difference, measure, comparison.samples)
            for measure, differences in measures.items()
            for difference in [*differences.files, *([differences.mean] if differences.mean else [])]
        ],
    )


def _compared(difference: Difference, measure: str, samples: int) -> list[str]:
    return [
        difference.name,
        measure,
        str(difference.rows),
        f"{difference.a:.2f}",
        f"{difference.b:.2f}",
        f"{difference.difference:+.2f}",
        f"{difference.low:+.2f} … {difference.high:+.2f}",
        f"{difference.p_value:.4f}" if difference.p_value else f"< {2 / samples:.2g}",
    ]


def _show_files(title: str, result: Result) -> None:
    files = result.files
    blank = [""] if result.mean else []

    def scores(measure: Measure) -> list[str]:
        mean = [measure(result.mean)] if result.mean else []
        return [_with_deviation(score) for score in [*map(measure, files), *mean]]

    rows = [
        ["ROUGE-L", *scores(lambda part: part.rouge_l)],
        ["EM", *scores(lambda part: part.exact_match)],
        ["rows", *(str(file.rows) for file in files), *blank],
        ["prompts cut", *(str(file.cut_prompts) for file in files), *blank],
        ["tokens a response", *(f"{file.tokens:.1f}" for file in files), *blank],
        ["ended by itself", *(f"{file.stopped:.1%}" for file in files), *blank],
    ]
    if any(file.reasoned for file in files):
        rows += [
            ["scored behind </think>", *(f"{file.reasoned:.1%}" for file in files), *blank],
            ["reasoning without end", *(f"{file.unanswered:.1%}" for file in files), *blank],
        ]
    console.table(title, ["", *(file.name for file in files), *(["mean"] if result.mean else [])], rows)


def _show_held_out(name: str, loss: HeldOutResult) -> None:
    console.table(
        f"{name}: responses of {loss.dataset}",
        ["rows", "tokens", "cross-entropy (nats)", "perplexity"],
        [[str(loss.rows), f"{loss.tokens:,}", f"{loss.loss:.4f}", f"{loss.perplexity:.3f}"]],
    )


def _how(result: Result) -> str:
    seeds = result.config["seeds"]
    sampled = "greedy" if seeds is None else console.counted(len(seeds), "seed")
    template = f", chat template {result.template['source']}" if result.template else ""
    multilingual = "" if _is_field_s(result) else ", multilingual ROUGE-L"
    return f"{sampled}{template}{multilingual}"


def _is_field_s(result: Result) -> bool:
    """Whether words of ROUGE-L are the field's."""
    return bool(result.config["rouge_tokenizer"] == "field")


def _with_deviation(score: Score) -> str:
    return f"{score.mean:.2f}" if score.deviation is None else f"{score.mean:.2f} ± {score.deviation:.2f}"
