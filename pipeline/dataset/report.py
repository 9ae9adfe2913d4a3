"""What the commands show a person: summaries of runs, estimates, checks, manifests."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.dataset.findings import LISTED, Findings
from pipeline.dataset.seal import Outcome
from pipeline.dataset.shards import REJECTED
from pipeline.read.template import templates_of
from schemas import console
from schemas.columns import GRANULARITIES, SIDES
from schemas.config import FieldsConfig, ParseConfig
from schemas.console import Text, counted
from schemas.errors import sentence
from schemas.manifest import CONFIG, MANIFEST, Manifest
from schemas.part_names import part_like
from schemas.rows import listed

#: Fields that a summary names, of those read and of those not.
_FIELDS: Final = 20
#: What parsers count: the noun, and what became of it.
_COUNTED: Final = {
    "sentences_parsed": ("sentence", "parsed"),
    "sentences_split": ("sentence", "split to be parsed"),
    "sentences_too_long": ("sentence", "too long for the parser"),
    "sentences_code": ("sentence", "of code, not parsed"),
    "sentences_punctuation": ("sentence", "without a word, not parsed"),
    "verb_groups_in_np": ("verb group", "inside a noun phrase, left out"),
    "chunks_punctuation": ("chunk", "without a word, left out"),
    "phrases_punctuation": ("phrase", "without a word, left out"),
}


def percent(part: int, whole: int) -> str:
    """`1, 3` -> `33.33%`; of nothing, all of it."""
    return f"{100 * part / whole:.2f}%" if whole else "100.00%"


def show_outcome(outcome: Outcome, out: Path, before: Manifest | None = None) -> None:
    """The end of a run: rows, what was left out and why, alignment, and what to do next.

    `before`: of the dataset that it was made from, if it was.
    """
    manifest = outcome.manifest
    assert manifest is not None
    if outcome.already_finished:
        console.stdout.print(f"{out} is already finished: this very run was done before. Nothing to do.")
        show_rows(manifest)
    else:
        show_rows(manifest)
        show_alignment(manifest)
        console.stdout.print(
            f"Written to {out}: {counted(len(manifest.shards), 'shard')}, {console.size(_bytes(manifest))}."
        )
        console.stdout.print(f"Look at it: {shlex.join(['mta-prep', 'inspect', str(out)])}")
    for warning in warnings_of(manifest, out, before):
        console.stderr.print(Text(warning, "yellow"))


def _carried_losses(before: Manifest, manifest: Manifest, out: Path) -> list[str]:
    """Of a dataset aligned anew: rows that the earlier run left out, which stay so, and how they would be tried again."""
    lost = {side: 0 for side in SIDES if before.tokenizers[side] != manifest.tokenizers[side]}
    for side in lost:
        lost[side] = sum(count for reason, count in before.dropped.items() if reason.startswith(f"{side}: "))
    rows = before.rows_in - before.rows_out
    if not rows:
        return []
    told = f"Of these, {counted(rows, 'row')} the earlier run had left out already; what is left out stays so."
    again = shlex.join(["mta-prep", "parse", "--config", str(out / CONFIG), "--out", "OTHER"])
    sides = [f"{counted(count, 'row')} by the earlier {side}'s" for side, count in lost.items() if count]
    if sides:
        told += f" {' and '.join(sides)} tokenizer or template: `{again}` tries them again."
    return [told]


def warnings_of(manifest: Manifest, out: Path, before: Manifest | None = None) -> list[str]:
    """What a person should look at before using a dataset; `before`: of the dataset that it was made from, if it was."""
    warnings = []
    lost = sum(manifest.rejected.values()) + sum(manifest.dropped.values())
    if lost:
        warnings.append(f"{counted(lost, 'row')} left out; see {out / REJECTED} for place and reason.")
    read = manifest.counts["fields"]["used"]
    fields = FieldsConfig.model_validate(manifest.config.get("fields", {}))
    for part, name in (("input", fields.input), ("id", fields.id)):  # the others are missed in every row
        if name is not None and name not in read:
            warnings.append(f"No row has the field `{name}` (--{part}-field).")
    for field, count in manifest.counts["fields"]["unused"].items():
        if (like := part_like(field, fields)) is not None:
            part, name = like
            warnings.append(
                f"`{field}` was not read in {counted(count, 'row')}: it is not written `{name}`. "
                f"`{shlex.join([f'--{part}-field', field])}` reads it."
            )
    repeated = manifest.counts["repeated_ids"]
    if repeated["rows"]:
        examples = ", ".join(f"`{example}`" for example in repeated["examples"])
        warnings.append(
            f"{counted(repeated['rows'], 'row')} with the id of an earlier row (of {examples}): "
            "`mta-prep inspect --id` shows the first."
        )
    return warnings + (_carried_losses(before, manifest, out) if before else [])


def _bytes(manifest: Manifest) -> int:
    return sum(shard.bytes for shard in manifest.shards)


def show_rows(manifest: Manifest) -> None:
    """Rows in and out, with every reason for a loss."""
    console.stdout.print(f"{counted(manifest.rows_in, 'row')} in, {counted(manifest.rows_out, 'row')} out.")
    for what, reasons in (("rejected", manifest.rejected), ("dropped", manifest.dropped)):
        for reason, count in reasons.items():
            console.stdout.print(f"  {count} {what}: {reason}")
    read = manifest.counts["fields"]
    for what, fields in (("Read", read["used"]), ("Not read", read["unused"])):
        if fields:
            console.stdout.print(f"{what}: {_fields(fields)}.")


def _fields(rows: Mapping[str, int]) -> str:
    """Fields by the number of rows that hold something in them, most first: `` `a`, `b` in 9 rows; `c` in 1 row``."""
    names: dict[int, list[str]] = {}
    for name, count in sorted(rows.items(), key=lambda item: -item[1])[:_FIELDS]:
        names.setdefault(count, []).append(name)
    more = f"; and {len(rows) - _FIELDS} more, which `counts` of {MANIFEST} has" if len(rows) > _FIELDS else ""
    return "; ".join(f"{listed(names)} in {counted(count, 'row')}" for count, names in names.items()) + more


def _sentences(counts: Mapping[str, int]) -> str:
    """What the parser counted, in words: `448 sentences parsed, 1 verb group inside a noun phrase, left out`."""
    told = {name: _COUNTED.get(name, (name.replace("_", " "), "")) for name in counts}
    return "; ".join(f"{counted(counts[name], noun)} {what}".strip() for name, (noun, what) in told.items()) or "none"


def show_alignment(manifest: Manifest) -> None:
    """Units aligned and lost, per side and reason."""
    alignment: dict[str, Any] = manifest.counts["alignment"]
    rows = []
    for name in GRANULARITIES:
        for side in (*SIDES, "both"):
            of_side = alignment[side][name]
            kept, inside, cut = of_side["kept"], of_side["inside"], of_side["cut"]
            rows.append([f"{name}, {side}", str(kept), str(inside), str(cut), percent(kept, kept + inside)])
    columns = ["units", "aligned", "edge in a token", "not read", "aligned of the rest"]
    console.table("Units and their token spans", columns, rows)


def show_shared_tokens(manifest: Manifest, folder: Path, problem: str | None) -> None:
    """How many tokens the vocabularies share, and how much of what is learnt is exactly alignable.

    `problem`: with the file that says which.
    """
    if manifest.vocabulary is None:
        again = shlex.join(["mta-prep", "align", str(folder), "--student", manifest.config["student"]["tokenizer"]])
        console.stdout.print(f"Older than the map of tokens that both vocabularies have; `{again} -o NEW` makes it.")
        return
    if problem is not None:
        console.stdout.print(Text(f"Which tokens the two vocabularies share cannot be read: {problem}.", "red"))
        return
    learnt = manifest.counts["learnt"]
    console.stdout.print(
        f"The two vocabularies share {counted(manifest.counts['shared_tokens'], 'token')}, by their bytes. Of "
        f"{counted(learnt['student'], 'learnt token')} of the student {percent(learnt['exact'], learnt['student'])} "
        f"cover just the text of one of the teacher's. {manifest.vocabulary.file} says which, and is as it was written."
    )


def show_mined(manifest: Manifest) -> None:
    """How much MinED aligned, if it was asked to."""
    counts = manifest.counts.get("mined")
    if counts is not None:
        console.stdout.print(
            f"MinED ({manifest.config['mined']}): of {counted(counts['tokens'], 'token')} of the student before a learnt one "
            f"{percent(counts['partners'], counts['tokens'])} have one of the teacher's as their partner by edit distance."
        )


def show_estimate(found: dict[str, Any], out: Path) -> None:
    """What a run would do."""
    rows = [[file["name"], str(file["rows"]), console.size(file["bytes"])] for file in found["inputs"]]
    console.table("Inputs", ["file", "rows", "size"], rows)
    for note in found["notes"]:
        console.stdout.print(note)
    fields = ", ".join(f"{part} {' or '.join(names)}" for part, names in found["fields"].items())
    console.stdout.print(f"Fields {fields}; {found['template']}.")
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
        console.stdout.print(sentence(f"{side} tokenized again: {how}"))
    for side, how in findings.decoded.items():
        console.stdout.print(sentence(f"{side} tokens decoded: {how}"))
    if not findings.found:
        console.stdout.print(Text(f"{folder} is whole: {checked} checked, nothing wrong.", "green"))
        return
    for problem in findings.problems:
        console.stdout.print(Text(problem, "red"))
    more = f" (the first {LISTED} are shown)" if findings.found > LISTED else ""
    place = f" in {checked}" if checked else ""
    console.stdout.print(Text(f"{folder}: {counted(findings.found, 'problem')}{more}{place}.", "red"))


def show_info(manifest: Manifest, folder: Path, problem: str | None) -> None:
    """What a dataset is; `problem`: with its map of tokens (`Manifest.vocabulary_problem`)."""
    console.stdout.print(f"{folder}: prepared dataset, mta-prep {manifest.versions['mta-prep']}.")
    show_rows(manifest)
    rows = [
        [side, tokenizer["name"], str(tokenizer["vocabulary"]), tokenizer["sha256"][:16]]
        for side, tokenizer in manifest.tokenizers.items()
    ]
    console.table("Tokenizers", ["side", "name", "vocabulary", "sha256"], rows)
    for side, tokenizer in manifest.tokenizers.items():
        first, last = (" ".join(tokenizer[part]) or "nothing" for part in ("prefix", "suffix"))
        console.stdout.print(f"The {side} has {first} before a text and {last} behind it.")
        if not tokenizer["suffix"]:
            console.stdout.print(
                Text(f"No end-of-sequence token is known on the {side}'s side: responses end in none.", "yellow")
            )
    show_shared_tokens(manifest, folder, problem)
    show_mined(manifest)
    parser, config = manifest.parser, ParseConfig.parse(manifest.config, str(folder))
    console.stdout.print(f"Parser {parser['kind']} {parser['name']} ({parser['sha256'][:16]}), {templates_of(config)}.")
    console.stdout.print(f"Sentences and units: {_sentences(manifest.counts['sentences'])}.")
    show_alignment(manifest)
    console.stdout.print(f"Fingerprint {manifest.fingerprint}")
    console.stdout.print(f"Teacher's   {manifest.teacher_fingerprint}")
