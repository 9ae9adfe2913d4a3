"""Evaluate a model as the field does: ROUGE-L of sampled responses over several seeds, and held-out perplexity.

    python trainer/evaluate.py run MODEL dolly.jsonl selfinst.jsonl --out results.json
    python trainer/evaluate.py run MODEL --held-out prepared
    python trainer/evaluate.py compare before.json after.json

The protocol is MiniLLM's: at most 256 tokens of a prompt and 512 in all, which leaves every response 256 whatever its
prompt took; sampled from the whole distribution with seeds 10 to 50; ROUGE-L with stemming against the best reference.
One thing differs: a longer prompt loses its beginning, and not its end with the heading that asks for the response.
A prompt is tokenized with whatever the model's tokenizer puts before a text (bos) and without what it puts behind it.
Conversations are asked by the model's own chat template, up to their last answer; a response ends where the template ends one.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Final, Literal

if __name__ == "__main__" and not __package__:
    # as a script, this folder would come first, and its file names before those of other packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from schemas import console
from schemas.config import ConversationsConfig, ModelConfig
from schemas.console import counted
from schemas.errors import ResourceError, UsageError
from schemas.files import write_text
from trainer.evaluation.questions import names_of, read_questions

if TYPE_CHECKING:
    from trainer.evaluation.results import Result

app = typer.Typer(
    help="Evaluate a model, or compare two evaluations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SEEDS: Final = "10,20,30,40,50"
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file, or hub id.", show_default=False)],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Test rows, one JSON object a line: `prompt`, or `instruction` and `input`; and `output`; or conversations, "
            "such as `messages`, whose last answer is the reference.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for the result, as `compare` reads.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One response a row with each.")] = SEEDS,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token always; one response a row.")] = False,
    temperature: Annotated[float, typer.Option(callback=console.positive, help="Divides the logits.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(max=1, callback=console.positive, help="Sample from the likeliest tokens of this mass.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from so many likeliest tokens; 0: all.")] = 0,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of the longest prompt and a response together.")] = 512,
    max_prompt_length: Annotated[
        int, typer.Option(min=1, help="Tokens of a prompt; a longer one loses its start.")
    ] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses generated at once.")] = 16,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N rows of each file and the dataset.")
    ] = None,
    min_words: Annotated[
        int, typer.Option(min=0, help="Only rows whose first reference has as many words (S-NI: 11).")
    ] = 0,
    held_out: Annotated[
        Path | None, typer.Option(help="Prepared dataset for cross-entropy and perplexity of its responses.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Default: cuda if there is one, else cpu.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Of the weights. With the shorter ones, sampled responses depend on the batch size."),
    ] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Chat template: native (default of conversations), alpaca, plain, chatml, or a Jinja file; single questions "
            "are then conversations too."
        ),
    ] = None,
    rouge_tokenizer: Annotated[
        Literal["field", "multilingual"],
        typer.Option(help="Words of ROUGE-L: the field's, which sees a-z and 0-9 alone, or those of all scripts."),
    ] = "field",
    save_texts: Annotated[bool, typer.Option("--save-texts", help="Keep the responses in the result.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """ROUGE-L on files of test rows, mean and standard deviation over seeds; perplexity on a prepared dataset."""
    paths = files or []
    names = names_of(paths)
    if not paths and held_out is None:
        raise UsageError("Nothing to evaluate on: name files of test rows, or --held-out DATASET.")
    if max_prompt_length >= max_length:
        raise UsageError(f"--max-prompt-length {max_prompt_length} leaves no token of --max-length {max_length}.")
    if out is not None:
        _require_writable(out)
    chosen: list[int] | list[None] = [None] if greedy else _seeds(seeds)
    questions = [read_questions(path, min_words, limit, as_conversations=template is not None) for path in paths]
    chats = any(not isinstance(question.prompt, str) for rows in questions for question in rows)

    from transformers.utils.logging import disable_progress_bar

    from trainer.evaluation.generate import Sampling
    from trainer.evaluation.perplexity import held_out_loss, open_documents
    from trainer.evaluation.responses import Evaluation, default_device, load
    from trainer.evaluation.results import Result, Score
    from trainer.models.chat_template import ChatTemplate

    if as_json or not console.stderr.is_terminal:
        disable_progress_bar()  # of loading weights
    loaded = load(
        ModelConfig(
            model=model,
            revision=revision,
            device=device or default_device(),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    )
    lost = None  # first, since it takes less time to find that it cannot be had
    if held_out is not None:
        lost = held_out_loss(loaded.teacher, open_documents(held_out, limit, loaded.teacher, loaded.tokenizer))
    found = []
    if paths:
        sampling = Sampling(temperature, top_k, top_p)
        subject = f"The tokenizer of the model {model!r}"
        date = ConversationsConfig().date
        asked = ChatTemplate(template or "native", loaded.tokenizer, subject, date) if chats else None
        evaluation = Evaluation(
            loaded,
            chosen,
            sampling,
            max_length,
            max_prompt_length,
            batch_size,
            quiet=as_json,
            template=asked,
            rouge_tokenizer=rouge_tokenizer,
        )
        found = [evaluation.file_result(name, rows, save_texts) for name, rows in zip(names, questions, strict=True)]
    by_seed = list(zip(*(file.rouge_l.per_seed for file in found), strict=True))
    result = Result(
        model=loaded.identity,
        config={
            "seeds": None if greedy else chosen,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_length": max_length,
            "max_prompt_length": max_prompt_length,
            "template": (template or "native") if chats else None,
            "rouge_tokenizer": rouge_tokenizer,
            "batch_size": batch_size,
            "limit": limit,
            "min_words": min_words,
            "device": str(loaded.teacher.device),
            "dtype": dtype,
        },
        versions={name: version(name) for name in ("mta-prep", "torch", "transformers", "rouge-score")},
        files=tuple(found),
        mean=Score.of([sum(scores) / len(scores) for scores in by_seed]) if len(found) > 1 else None,
        held_out=lost,
    )
    if as_json:
        console.emit_json(result.model_dump(mode="json"))
    else:
        _show(result)
    if out is not None:
        try:
            write_text(out, result.model_dump_json(indent=1) + "\n")
        except OSError as error:
            if not as_json:
                console.emit_json(result.model_dump(mode="json"))  # nothing of it is lost
            raise ResourceError(f"{out} cannot be written ({error.strerror}); its content was printed.") from None


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(help="A result of `run --out`.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another, on the same rows.", show_default=False)],
    samples: Annotated[int, typer.Option(min=1, help="How often the rows are drawn anew.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of these draws.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Is B better than A? Paired bootstrap over rows (Koehn 2004): difference, 95 % interval, p-value."""
    from trainer.evaluation.results import compare

    found = compare(a, b, samples, seed)
    if as_json:
        console.emit_json(found.model_dump(mode="json"))
        return
    if found.unlike:
        what = "; ".join(f"{each.setting} {json.dumps(each.a)} and {json.dumps(each.b)}" for each in found.unlike)
        console.stderr.print(f"A and B were not evaluated alike ({what}), so they differ by more than their models.")
    console.table(
        f"ROUGE-L, {samples:,} resamples",
        ["", "rows", "A", "B", "B − A", "95 % interval", "p"],
        [
            [
                each.name,
                str(each.rows),
                f"{each.a:.2f}",
                f"{each.b:.2f}",
                f"{each.difference:+.2f}",
                f"{each.low:+.2f} … {each.high:+.2f}",
                f"{each.p_value:.4f}" if each.p_value else f"< {2 / samples:.2g}",
            ]
            for each in [*found.files, *([found.mean] if found.mean else [])]
        ],
    )


def _require_writable(out: Path) -> None:
    """Raises `UserError` and its kin now, not when everything is computed."""
    folder = out.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} for --out.")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file.")
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResourceError(f"--out {out} cannot be written ({error.strerror}).") from None


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r}: whole numbers with commas between them are wanted.") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r}: each may stand there once, and none is below 0.")
    return seeds


def _show(result: "Result") -> None:
    """A column for each file, as published tables have it."""
    name, files = result.model["name"], result.files
    if files:
        scores = [*(file.rouge_l for file in files), *([result.mean] if result.mean else [])]
        blank = [""] * (len(scores) - len(files))
        console.table(
            f"{name}: ROUGE-L, {_how(result)}",
            ["", *(file.name for file in files), *(["mean"] if result.mean else [])],
            [
                ["ROUGE-L", *(_with_deviation(score.mean, score.deviation) for score in scores)],
                [
                    "exact match",
                    *(_with_deviation(file.exact_match.mean, file.exact_match.deviation) for file in files),
                    *blank,
                ],
                ["rows", *(str(file.rows) for file in files), *blank],
                ["prompts cut", *(str(file.cut_prompts) for file in files), *blank],
                ["tokens a response", *(f"{file.tokens:.1f}" for file in files), *blank],
                ["ended by itself", *(f"{file.stopped:.1%}" for file in files), *blank],
            ],
        )
    for file in files:
        if file.wordless:
            console.stderr.print(
                f"{file.name}: of {counted(file.wordless, 'row')} no reference has a word that ROUGE-L sees, so nothing scores "
                "there; --rouge-tokenizer multilingual sees the words of all scripts."
            )
    if result.held_out is not None:
        found = result.held_out
        console.table(
            f"{name}: responses of {found.dataset}",
            ["rows", "tokens", "cross-entropy (nats)", "perplexity"],
            [[str(found.rows), f"{found.tokens:,}", f"{found.loss:.4f}", f"{found.perplexity:.3f}"]],
        )


def _how(result: "Result") -> str:
    seeds = result.config["seeds"]
    return "greedy" if seeds is None else f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def _with_deviation(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def main() -> None:
    """Entry point."""
    console.run(app, "evaluate.py", "Interrupted; nothing was kept.")


if __name__ == "__main__":
    main()
