"""Evaluate a model as the field does: ROUGE-L of sampled responses over several seeds, and held-out perplexity.

    mta-prep evaluate run MODEL dolly.jsonl selfinst.jsonl --out results.json
    mta-prep evaluate run MODEL --held-out prepared
    mta-prep evaluate compare before.json after.json

`python trainer/evaluate.py …` in a clone and `python -m trainer.evaluate …` anywhere are the same.

The protocol is MiniLLM's: at most 256 tokens of a prompt and 512 in all, which leaves every response 256 whatever its
prompt took; sampled from the whole distribution with seeds 10 to 50; ROUGE-L with stemming against the best reference.
One thing differs: a longer prompt loses its beginning, and not its end with the heading that asks for the response.
A prompt is tokenized with whatever the model's tokenizer puts before a text (bos), once, and without what it puts behind
it. A conversation is rendered by the model's own chat template, and its last answer is the reference.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Final, Literal

if __name__ == "__main__":
    # first would come this folder, or with `-m` the current one, and their names before those of packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from schemas import console
from schemas.config import LARGEST_SEED, ModelConfig
from schemas.errors import ResourceError, UsageError
from schemas.files import write_text
from schemas.manifest import read_manifest
from trainer.evaluation.questions import Reading, names_of, read_questions
from trainer.hub.folders import local_folder
from trainer.models.chat_template import require_known
from trainer.models.hub import located_here

app = typer.Typer(
    help="Evaluate a model, or compare two evaluations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SEEDS: Final = "10,20,30,40,50"
INTERRUPTED: Final = "Interrupted; nothing was kept."


def _drawn_at(temperature: float) -> float:
    """Callback of `--temperature`."""
    if temperature == 0:
        raise typer.BadParameter("nothing can be drawn at 0; for the likeliest token always, pass --greedy.")
    console.positive(temperature)
    return temperature


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file, or hub id.", show_default=False)],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Test rows, one JSON object a line: `prompt`, or `instruction` and `input`; and `output`. Or `messages`.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for the result, as `compare` reads.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One response a row with each.")] = SEEDS,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token always; one response a row.")] = False,
    temperature: Annotated[float, typer.Option(callback=_drawn_at, help="Divides the logits.")] = 1.0,
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
    template: Annotated[
        str | None,
        typer.Option(
            help="Chat template: native (the model's own), alpaca, plain, chatml or a Jinja file. Default: native for "
            "conversations; single questions are asked as a ready-made or Alpaca prompt."
        ),
    ] = None,
    merge_turns: Annotated[bool, typer.Option("--merge-turns", help="Join neighbouring turns of one role.")] = False,
    system_into_user: Annotated[
        bool, typer.Option("--system-into-user", help="Put what the system says into the user's turn.")
    ] = False,
    rouge_tokenizer: Annotated[
        Literal["field", "multilingual"],
        typer.Option(help="Words of ROUGE-L: the field's, which sees a-z and 0-9 alone, or those of all scripts."),
    ] = "field",
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Prepared dataset for cross-entropy and perplexity of its responses: a folder, or hf://datasets/OWNER/NAME.",
            metavar="DATASET",
            parser=local_folder,
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Default: cuda if there is one, else cpu.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Of the weights. With the shorter ones, sampled responses depend on the batch size."),
    ] = "float32",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    save_texts: Annotated[bool, typer.Option("--save-texts", help="Keep the responses in the result.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """ROUGE-L and exact match on files of test rows, mean and deviation over seeds; perplexity on a prepared dataset."""
    paths = files or []
    names = names_of(paths)
    if not paths and held_out is None:
        raise UsageError("Nothing to evaluate on: name files of test rows, or --held-out DATASET.")
    if max_prompt_length >= max_length:
        raise UsageError(f"--max-prompt-length {max_prompt_length} leaves no token of --max-length {max_length}.")
    if out is not None:
        _require_writable(out)
    chosen: list[int] | list[None] = [None] if greedy else _seeds(seeds)
    if template is not None:
        require_known(template)
    if held_out is not None:
        read_manifest(held_out)
    located_here(ModelConfig(model=model, revision=revision), "model")
    reading = Reading(template is not None, merge_turns, system_into_user)
    questions = [read_questions(path, min_words, limit, reading) for path in paths]
    converses = any(not isinstance(question.prompt, str) for rows in questions for question in rows)

    # what takes seconds to import comes after all that a wrong name would be refused for
    from transformers.utils.logging import disable_progress_bar

    from trainer.evaluation.generate import Sampling
    from trainer.evaluation.perplexity import held_out_loss, open_documents
    from trainer.evaluation.responses import Evaluation, default_device, load
    from trainer.evaluation.results import Means, Result
    from trainer.evaluation.tables import show, warn

    if as_json or not console.stderr.is_terminal:
        disable_progress_bar()  # of loading weights
    loaded = load(
        ModelConfig(
            model=model,
            revision=revision,
            device=device or default_device(),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        ),
        template,
        converses,
    )
    lost = None  # first, since it takes less time to find that it cannot be had
    if held_out is not None:
        lost = held_out_loss(loaded.teacher, open_documents(held_out, limit, loaded.teacher, loaded.tokenizer))
    results = []
    stop = loaded.tokenizer.convert_ids_to_tokens(list(loaded.stop))
    if paths:
        sampling = Sampling(temperature, top_k, top_p)
        evaluation = Evaluation(
            loaded, chosen, sampling, max_length, max_prompt_length, batch_size, as_json, rouge_tokenizer
        )
        asked = [evaluation.asked(rows) for rows in questions]
        results = [
            evaluation.file_result(name, rows, prompts, save_texts)
            for name, rows, prompts in zip(names, questions, asked, strict=True)
        ]
    result = Result(
        model=loaded.identity,
        template=loaded.template.identity() if converses and loaded.template is not None else None,
        config={
            "seeds": None if greedy else chosen,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_length": max_length,
            "max_prompt_length": max_prompt_length,
            "batch_size": batch_size,
            "limit": limit,
            "min_words": min_words,
            "template": template,
            "merge_turns": merge_turns,
            "system_into_user": system_into_user,
            "rouge_tokenizer": rouge_tokenizer,
            "stop": stop,
            "device": str(loaded.teacher.device),
            "dtype": dtype,
        },
        versions={name: version(name) for name in ("mta-prep", "torch", "transformers", "rouge-score")},
        files=tuple(results),
        mean=Means.of(results),
        held_out=lost,
    )
    if as_json:
        console.emit_json(result.model_dump(mode="json"))
    else:
        show(result)
        warn(result)
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
    from trainer.evaluation.tables import show_comparison

    comparison = compare(a, b, samples, seed)
    if as_json:
        console.emit_json(comparison.model_dump(mode="json"))
    else:
        show_comparison(comparison)


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
    if min(seeds) < 0 or max(seeds) > LARGEST_SEED or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r}: each may stand there once, and they are from 0 to {LARGEST_SEED}.")
    return seeds


def main() -> None:
    """Entry point."""
    console.run(app, "evaluate.py", INTERRUPTED)


if __name__ == "__main__":
    main()
