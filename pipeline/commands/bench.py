"""`mta-prep bench`, as typed."""

from typing import Annotated, Any

import typer

from pipeline.commands.flags import JsonFlag, run_workers
from pipeline.parse.places import locate
from schemas import console
from schemas.console import counted


def show_bench(found: dict[str, Any], machine: dict[str, Any]) -> None:
    """Speeds of the parser beside stock benepar's, in sentences a second."""
    named = {
        "stock_documents": "stock benepar, spaCy component per document",
        "stock_batched": "stock benepar, all sentences at once",
        "encoder_only": "its encoder alone",
        "ours": "this parser",
        "ours_int8": "this parser, int8",
    }
    speeds = found["sentences_per_second"]
    named = {key: title for key, title in named.items() if key in speeds}
    console.table(
        "Parser",
        ["", "sentences/s", "this parser is faster by"],
        [[title, f"{speeds[key]:.1f}", f"{speeds['ours'] / speeds[key]:.2f}x"] for key, title in named.items()],
    )
    short = {key: title for key, title in named.items() if key != "stock_documents"}
    console.table(
        "Sentences/s by sentence length",
        ["words", *short.values()],
        [[str(length), *(f"{rates[key]:.1f}" for key in short)] for length, rates in found["by_length"].items()],
    )
    tiers = found["tiers"]
    console.table(
        f"Precisions, {counted(tiers['float32']['sentences'], 'sentence')}",
        ["", "times float32's speed", "by processor time", "trees changed"],
        [
            [name, f"{tier['speed']:.2f}", f"{tier['speed_by_processor_time']:.2f}", str(tier["trees_changed"])]
            for name, tier in tiers.items()
        ],
    )
    changed = found["trees_changed_by_int8"]
    without = "int8 is left out, it would be slower here (neither AVX2 nor VNNI)"
    console.stdout.print(
        f"{counted(found['sentences'], 'sentence')} ({found['sentences_distinct']} different), "
        f"{found['sentences_left_out']} left out that stock benepar cannot take; trees unlike stock benepar's: "
        f"{found['trees_differ']}; {without if changed is None else f'changed by int8: {changed}'}."
    )
    console.stdout.print(", ".join(f"{name} {value}" for name, value in machine.items()))


def bench_parser(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Rows of text, as `mta-prep parse` reads them. Default: some of the sample."),
    ] = None,
    parser_model: Annotated[str, typer.Option(help="`embedded`, a folder, or a published name.")] = "embedded",
    rounds: Annotated[int, typer.Option(min=1, help="Each contestant runs this often; medians are shown.")] = 2,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores for each contestant. Default: all.")] = None,
    longest: Annotated[int, typer.Option(min=2, help="Leave sentences of more words out.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """Sentences per second of this parser beside stock benepar, whether the trees agree, and a table by length."""
    locate(parser_model)
    from pipeline.bench.documents import documents_of, sample_documents

    documents = documents_of(inputs, longest) if inputs else sample_documents(longest)
    # what takes seconds to import comes after all that a wrong name would be refused for
    from pipeline.bench import machine, parser

    found = parser.measure(parser_model, documents, rounds, cores or run_workers(), console.stderr.print)
    if as_json:
        console.emit_json({**found, "machine": machine.describe()})
    else:
        show_bench(found, machine.describe())
