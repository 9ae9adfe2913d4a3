"""What the commands show a person: summaries of runs, estimates, checks, manifests."""

from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.dataset.seal import Outcome
from pipeline.dataset.shards import REJECTED
from pipeline.dataset.verify import LISTED, Findings
from schemas import console
from schemas.columns import GRANULARITIES, SIDES
from schemas.console import counted
from schemas.manifest import Manifest


def percent(part: int, whole: int) -> str:
    """`1, 3` -> `33.33%`; of nothing, all of it."""
    return f"{100 * part / whole:.2f}%" if whole else "100.00%"


def show_outcome(outcome: Outcome, out: Path) -> None:
    """The end of a run: rows, what was left out and why, alignment, and what to do next."""
    manifest = outcome.manifest
    assert manifest is not None
    if outcome.already_finished:
        console.stdout.print(f"{out} is already finished: this very run was done before. Nothing to do.")
        return
    show_rows(manifest)
    show_alignment(manifest)
    console.stdout.print(
        f"Written to {out}: {counted(len(manifest.shards), 'shard')}, {console.size(_bytes(manifest))}."
    )
    console.stdout.print(f"Look at it: mta-prep inspect {out}")
    if manifest.rejected:
        console.stderr.print(
            Text(
                f"{counted(sum(manifest.rejected.values()), 'row')} could not be used; "
                f"see {out / REJECTED} for place and reason.",
                "yellow",
            )
        )


def _bytes(manifest: Manifest) -> int:
    return sum(shard.bytes for shard in manifest.shards)


def show_rows(manifest: Manifest) -> None:
    """Rows in and out, with every reason for a loss."""
    console.stdout.print(f"{counted(manifest.rows_in, 'row')} in, {counted(manifest.rows_out, 'row')} out.")
    for what, reasons in (("rejected", manifest.rejected), ("dropped", manifest.dropped)):
        for reason, count in reasons.items():
            console.stdout.print(f"  {count} {what}: {reason}")


def show_alignment(manifest: Manifest) -> None:
    """Units aligned and lost, per side and reason."""
    alignment: dict[str, Any] = manifest.counts["alignment"]
    rows = []
    for name in GRANULARITIES:
        for side in (*SIDES, "both"):
            of_side = alignment[side][name]
            kept, inside, cut = of_side["kept"], of_side["inside"], of_side["cut"]
            rows.append([f"{name}, {side}", str(kept), str(inside), str(cut), percent(kept, kept + inside)])
    columns = ["units", "aligned", "edge in a token", "truncated", "aligned of the rest"]
    console.table("Units and their token spans", columns, rows)


def show_estimate(found: dict[str, Any], out: Path) -> None:
    """What a run would do."""
    rows = [[file["name"], str(file["rows"]), console.size(file["bytes"])] for file in found["inputs"]]
    console.table("Inputs", ["file", "rows", "size"], rows)
    for note in found["notes"]:
        console.stdout.print(Text(note))
    fields = ", ".join(f"{part}={name}" for part, name in found["fields"].items())
    console.stdout.print(f"Fields {fields}; template {found['template']}.")
    console.stdout.print(
        f"Would write {counted(found['rows'], 'row')} in {counted(found['shards'], 'shard')} to {out}: about "
        f"{console.size(found['estimated_bytes'])}, {console.duration(found['estimated_seconds'])} with "
        f"{counted(found['workers'], 'worker')} (from {counted(found['sample_rows'], 'row')}, prepared and "
        "thrown away)."
    )


def show_findings(findings: Findings, folder: Path) -> None:
    """The end of a verification."""
    checked = ", ".join(counted(count, what.removesuffix("s")) for what, count in findings.checked.items() if count)
    for side, how in findings.retokenized.items():
        console.stdout.print(f"{side} tokenized again: {how}.")
    for side, how in findings.decoded.items():
        console.stdout.print(f"{side} tokens decoded: {how}.")
    if not findings.found:
        console.stdout.print(Text(f"{folder} is whole: {checked} checked, nothing wrong.", "green"))
        return
    for problem in findings.problems:
        console.stdout.print(Text(problem, "red"))
    more = f" (the first {LISTED} are shown)" if findings.found > LISTED else ""
    console.stdout.print(Text(f"{folder}: {counted(findings.found, 'problem')}{more} in {checked}.", "red"))


def show_info(manifest: Manifest, folder: Path) -> None:
    """What a dataset is."""
    console.stdout.print(f"{folder}: prepared dataset, mta-prep {manifest.versions['mta-prep']}.")
    show_rows(manifest)
    rows = [
        [
            side,
            tokenizer["name"],
            str(tokenizer["vocabulary"]),
            " ".join(tokenizer["prefix"]) or "nothing",
            " ".join(tokenizer["suffix"]) or "nothing",
            tokenizer["sha256"][:16],
        ]
        for side, tokenizer in manifest.tokenizers.items()
    ]
    console.table("Tokenizers", ["side", "name", "vocabulary", "before a text", "behind it", "sha256"], rows)
    for side in (side for side, tokenizer in manifest.tokenizers.items() if not tokenizer["suffix"]):
        console.stdout.print(
            Text(f"No end-of-sequence token is known on the {side}'s side: responses end in none.", "yellow")
        )
    parser = manifest.parser
    console.stdout.print(
        f"Parser {parser['kind']} {parser['name']} ({parser['sha256'][:16]}), template {manifest.config['template']}."
    )
    sentences = ", ".join(f"{count} {what}" for what, count in manifest.counts["sentences"].items())
    console.stdout.print(f"Sentences and units: {sentences}.")
    show_alignment(manifest)
    console.stdout.print(f"Fingerprint {manifest.fingerprint}")
    console.stdout.print(f"Teacher's   {manifest.teacher_fingerprint}")
