"""The engine beside stock benepar: the same weights, the same sentences, the same cores, in one run.

    python tests/benchmarks/parser.py [--trees FILE.ptb ...] [--text FILE.jsonl ...] [--rounds N] [--json]

`ours_over_stock_documents`: stock benepar as a spaCy component, document by document. `ours_over_stock_batched`: stock
benepar, all sentences at once. `ours_over_encoder_only`: transformers' encoder alone in our batches, which was taken
for the limit. `trees_differ`: sentences whose labelled spans are not stock benepar's. Trees are made into documents of
five sentences; `mta-prep bench parser` is the same on texts.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.bench import machine, parser
from pipeline.bench.documents import documents_of, sample_documents
from pipeline.parse.treebank import read_trees, words_of
from pipeline.text import Words


def from_trees(path: Path, limit: int, longest: int) -> list[list[Words]]:
    """Documents of five neighbouring sentences."""
    words = [words_of(tree) for tree in read_trees(path)]
    kept = [sentence for sentence in words if len(sentence.words) <= longest][:limit]
    return [kept[first : first + 5] for first in range(0, len(kept), 5)]


def main(
    trees: Annotated[list[Path] | None, typer.Option(help="Bracketed trees.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Rows of text, as `mta-prep parse` reads them.")] = None,
    parser_model: str = "embedded",
    rounds: int = 2,
    cores: int = 2,
    sentences_a_treebank: int = 2000,
    longest: int = 100,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure; without inputs on some of the embedded sample."""
    documents = [doc for path in trees or [] for doc in from_trees(path, sentences_a_treebank, longest)]
    documents += documents_of(text, longest) if text else []
    chosen = documents or sample_documents(longest)
    result = parser.measure(parser_model, chosen, rounds, cores, lambda line: print(line, flush=True))
    machine.report(result, as_json)


if __name__ == "__main__":
    typer.run(main)
