"""What instruction data really holds, with the chunks expected of it: how many inputs come out right.

`inputs.jsonl` holds one input a line: `text` (`repeat` times over, if given) and `chunks`, each [text, label], in order.
They were marked by hand from the definition in `pipeline/align/units.py` and the Penn Treebank's conventions before any
parser saw them; what a parser gets wrong stays wrong here. `chunks` is null where the definition says nothing (other
languages, code, noise): such inputs must only keep the invariants that every input must keep.

An input passes if its chunks equal the expected ones, every span and label. `published.json` holds the figures of the
embedded parser; a test fails if fewer inputs pass.

    python tests/robustness/test_robustness.py                 # the table
    python tests/robustness/test_robustness.py --failures      # also what was expected and found
    python tests/robustness/test_robustness.py --update        # publish: after a new parser or new inputs
"""

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.parse.benepar import BeneparParser
from pipeline.read.segment import Segmenter
from pipeline.text import Document, Units
from schemas.config import ParserConfig, SegmentConfig

pytestmark = pytest.mark.xdist_group("robustness")  # one process parses the inputs, for all of these

INPUTS = Path(__file__).with_name("inputs.jsonl")
PUBLISHED = Path(__file__).with_name("published.json")
#: Bound on the CPU time of one input, far above what is usual, far below what any quadratic step takes on the long ones.
SECONDS, SECONDS_PER_CHARACTER = 2.0, 1e-3

Chunk = tuple[int, int, str]  # [start, end) in characters, label
Figures = dict[str, dict[str, float | None]]  # by kind of input


@dataclass(frozen=True)
class Input:
    """A text, and its chunks if the definition says which."""

    id: str
    kind: str
    text: str
    copies: int
    chunks: tuple[Chunk, ...] | None


def located(text: str, chunks: Iterable[Sequence[str]]) -> tuple[Chunk, ...]:
    """Each chunk where its text next stands after the chunk before it, not inside a word; `ValueError` if nowhere."""
    found: list[Chunk] = []
    at = 0
    for words, label in chunks:
        start = text.index(words, at)
        while _inside_word(text, start) or _inside_word(text, start + len(words)):
            start = text.index(words, start + 1)
        at = start + len(words)
        found.append((start, at, label))
    return tuple(found)


def _inside_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


def read_inputs() -> list[Input]:
    rows = [json.loads(line) for line in INPUTS.read_text(encoding="utf-8").split("\n") if line]
    inputs = []
    for row in rows:
        copies = row.get("repeat", 1)
        text = row["text"] * copies
        chunks = None if row["chunks"] is None else located(text, row["chunks"] * copies)
        inputs.append(Input(row["id"], row["kind"], text, copies, chunks))
    return inputs


def chunks_of(units: Units) -> tuple[Chunk, ...]:
    return tuple((a, b, label) for (a, b), label in zip(units.chunks.tolist(), units.chunk_labels, strict=True))


def phrases_of(units: Units) -> tuple[Chunk, ...]:
    return tuple((a, b, label) for (a, b), label in zip(units.phrases.tolist(), units.phrase_labels, strict=True))


@dataclass(frozen=True)
class Run:
    """All inputs through the parser of `mta-prep parse`, in one call and each in a call of its own."""

    inputs: list[Input]
    documents: list[Document]
    together: list[Units]
    alone: list[Units]
    seconds: list[float]  # CPU time of each alone
    parser: dict[str, Any]

    @classmethod
    def of_embedded(cls) -> "Run":
        inputs = read_inputs()
        segmenter, parser = Segmenter(SegmentConfig()), BeneparParser(ParserConfig())
        documents = segmenter.segment([item.text for item in inputs], [()] * len(inputs))
        together = parser.extract(documents)
        alone, seconds = [], []
        for item in inputs:
            begin = time.process_time()
            alone.extend(parser.extract(segmenter.segment([item.text], [()])))
            seconds.append(time.process_time() - begin)
        return cls(inputs, documents, together, alone, seconds, parser.identity())

    def passes(self) -> list[bool | None]:
        """Whether each input has exactly the expected chunks; None where nothing is expected."""
        return [
            None if item.chunks is None else item.chunks == chunks_of(units)
            for item, units in zip(self.inputs, self.together, strict=True)
        ]

    def figures(self) -> Figures:
        """Figures by kind of input, and of `all`.

        `inputs` with expected chunks, how many `passed`, `percent` of them; micro-averaged `precision`, `recall` and
        `f1` of their chunks in percent (one copy's share of repeated texts); `unlabelled` inputs without expectation.
        """
        counts: dict[str, Counter[str]] = {}
        hits: dict[str, list[float]] = {}
        for item, units, passed in zip(self.inputs, self.together, self.passes(), strict=True):
            for kind in (item.kind, "all"):
                count = counts.setdefault(kind, Counter())
                sums = hits.setdefault(kind, [0.0, 0.0, 0.0])
                if item.chunks is None:
                    count["unlabelled"] += 1
                    continue
                count["inputs"] += 1
                count["passed"] += bool(passed)
                found = chunks_of(units)
                for i, number in enumerate((len(set(item.chunks) & set(found)), len(item.chunks), len(found))):
                    sums[i] += number / item.copies
        return {
            kind: {
                "inputs": counts[kind]["inputs"],
                "passed": counts[kind]["passed"],
                "percent": percent(counts[kind]["passed"], counts[kind]["inputs"]),
                "precision": percent(hit, given),
                "recall": percent(hit, right),
                "f1": percent(2 * hit, right + given),
                "unlabelled": counts[kind]["unlabelled"],
            }
            for kind, (hit, right, given) in sorted(hits.items(), key=lambda pair: (pair[0] == "all", pair[0]))
        }


def percent(part: float, whole: float) -> float | None:
    """None where there is nothing of which to take a part."""
    return round(100 * part / whole, 1) if whole else None


def table(figures: Figures) -> str:
    columns = ("inputs", "passed", "percent", "precision", "recall", "f1", "unlabelled")
    lines = [f"{'kind':<14}" + "".join(f"{name:>12}" for name in columns)]
    for kind, row in figures.items():
        values = ("-" if row[name] is None else row[name] for name in columns)
        lines.append(f"{kind:<14}" + "".join(f"{value:>12}" for value in values))
    return "\n".join(lines)


def spelled(text: str, chunks: Iterable[Chunk]) -> str:
    return " ".join(f"[{label} {text[start:end]}]" for start, end, label in chunks)


def failures(run: Run) -> str:
    """Expected and found chunks of every input that failed; those of repeated texts cut short."""
    lines = []
    for item, units, passed in zip(run.inputs, run.together, run.passes(), strict=True):
        if passed is False and item.chunks is not None:
            expected, found = spelled(item.text, item.chunks), spelled(item.text, chunks_of(units))
            lines += [f"{item.id}: {item.text[:400]!r}", f"  expected  {expected[:600]}", f"  found     {found[:600]}"]
    return "\n".join(lines)


def digest() -> str:
    return hashlib.sha256(INPUTS.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def run() -> Run:
    return Run.of_embedded()


def test_as_many_inputs_pass_as_published(run: Run) -> None:
    figures = run.figures()
    print(table(figures))
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    how = f"run `python tests/robustness/{Path(__file__).name} --update` and put the new figures into the model card"
    assert published["inputs_sha256"] == digest(), f"The published figures are of other inputs: {how}."
    assert published["parser_sha256"] == run.parser["sha256"], f"The published figures are of another parser: {how}."
    assert figures["all"]["passed"] >= published["figures"]["all"]["passed"], failures(run)


def test_the_inputs_are_many_and_of_every_kind() -> None:
    inputs = read_inputs()
    assert len({item.id for item in inputs}) == len(inputs)
    assert len({(item.text, item.copies) for item in inputs}) == len(inputs)
    assert sum(item.chunks is not None for item in inputs) >= 80
    assert max(len(item.text) for item in inputs) >= 5000
    assert max(len(item.text.split()) for item in inputs if not set(item.text) & set(".!?,;:\n")) >= 400


def test_chunks_that_read_as_expected_stand_where_expected(run: Run) -> None:
    """Chunks are found in the texts by their words; a repeated word must not have been mistaken for another."""
    for item, units in zip(run.inputs, run.together, strict=True):
        if item.chunks is not None and spelled(item.text, item.chunks) == spelled(item.text, chunks_of(units)):
            assert item.chunks == chunks_of(units), item.id


def test_units_are_well_formed_on_every_input(run: Run) -> None:
    for item, document, units in zip(run.inputs, run.documents, run.together, strict=True):
        chunks, phrases = chunks_of(units), phrases_of(units)
        sentence_of = {
            at: n for n, (start, end) in enumerate(document.sentence_spans.tolist()) for at in range(start, end)
        }
        for found in (chunks, phrases):
            for start, end, label in found:
                assert 0 <= start < end <= len(item.text), item.id
                assert label in ("NP", "VP"), item.id
                assert item.text[start:end] == item.text[start:end].strip(), item.id
                assert sentence_of[start] == sentence_of[end - 1], item.id
            assert list(found) == sorted(found, key=lambda unit: (unit[0], -unit[1])), item.id
            assert len(set(found)) == len(found), item.id
        for before, after in pairwise(chunks):
            assert before[1] <= after[0], item.id
        open_until: list[int] = []
        for start, end, _ in phrases:
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or end <= open_until[-1], f"{item.id}: phrases cross"
            open_until.append(end)


def test_units_do_not_depend_on_the_company(run: Run) -> None:
    for item, together, alone in zip(run.inputs, run.together, run.alone, strict=True):
        assert chunks_of(together) == chunks_of(alone), item.id
        assert phrases_of(together) == phrases_of(alone), item.id
        assert together.counts == alone.counts, item.id


def test_no_input_takes_long(run: Run) -> None:
    for item, seconds in zip(run.inputs, run.seconds, strict=True):
        assert seconds < SECONDS + SECONDS_PER_CHARACTER * len(item.text), item.id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failures", action="store_true", help="print expected and found chunks of failed inputs")
    parser.add_argument("--update", action="store_true", help=f"write the figures to {PUBLISHED.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = Run.of_embedded()
    figures = run.figures()
    if arguments.failures:
        print(failures(run))
    print(table(figures))
    if arguments.update:
        contents = {"parser_sha256": run.parser["sha256"], "inputs_sha256": digest(), "figures": figures}
        PUBLISHED.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
