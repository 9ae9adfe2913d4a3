"""`mta-prep verify`: whether a prepared dataset is whole, and says the truth about its texts.

Always: checksums, schema, rows of every shard against the manifest, rows in = rows out + rejected + dropped, fingerprints, both
sides' tokens. Unless quick, every row (`pipeline.dataset.verify_rows`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.align.vocabulary import SideVocabulary, read_nearest, read_side, shared_tokens, vocabulary_file
from pipeline.dataset import shards
from pipeline.dataset.findings import Findings, check_config, looked_at
from schemas.columns import SIDES, Side, arrow_schema
from schemas.config import ParseConfig
from schemas.console import counted
from schemas.dataset import open_shard
from schemas.errors import DamagedError
from schemas.manifest import Manifest, ShardFile, read_manifest
from schemas.saved_dataset import dataset_files
from schemas.vocabulary import VOCABULARY

if TYPE_CHECKING:
    from pipeline.dataset.verify_rows import RowChecks


def verify(folder: Path, *, quick: bool, moved: Mapping[Side, str | None]) -> Findings:
    """Check `folder`; `moved` names tokenizers that are no longer where the config says.

    Raises `StateError` if there is no readable manifest.
    """
    manifest = read_manifest(folder)
    findings = Findings()
    config = ParseConfig.parse(manifest.config, str(folder))
    schema = arrow_schema(config.parser.keep_trees, config.mined is not None)
    rows = None if quick else _row_checks(config, manifest, moved, findings)
    sides = _check_vocabulary(manifest, folder, findings)
    if rows is not None and sides is not None:
        rows.take(sides)
    check_config(folder, config, findings)
    names = [shard.file for shard in manifest.shards]
    for name, text in dataset_files(schema, names, manifest.fingerprint).items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode():
            findings.problem(f"{name}, by which `datasets.load_from_disk` opens the folder, is not as it was written.")

    def opened(shard: ShardFile) -> pa.Table | DamagedError:
        try:
            return open_shard(folder, shard, content=True)
        except DamagedError as error:
            return error

    for shard, table in zip(manifest.shards, looked_at(opened, manifest.shards), strict=True):
        if isinstance(table, DamagedError):
            findings.problem(f"{table.what}.")
            continue
        findings.checked["shards"] += 1
        if not table.schema.equals(schema):
            findings.problem(f"{shard.file} has other columns than the config's `parser.keep_trees` and `mined` say.")
            continue
        if rows is not None:
            rows.check(table, shard.file)
    _check_counts(manifest, folder, findings)
    if rows is not None and not findings.found:
        rows.check_fingerprints()
    return findings


def _row_checks(
    config: ParseConfig, manifest: Manifest, moved: Mapping[Side, str | None], findings: Findings
) -> "RowChecks":
    from pipeline.dataset.verify_rows import RowChecks  # here, since a quick look needs none of what it imports

    return RowChecks(config, manifest, moved, findings)


def _check_counts(manifest: Manifest, folder: Path, findings: Findings) -> None:
    out = sum(shard.rows for shard in manifest.shards)
    lost = sum(manifest.rejected.values()) + sum(manifest.dropped.values())
    if manifest.rows_out != out:
        findings.problem(f"The manifest says {manifest.rows_out} rows were written, its shards hold {out}.")
    if manifest.rows_in != manifest.rows_out + lost:
        findings.problem(f"{manifest.rows_in} rows in, but {manifest.rows_out} out and {lost} accounted for.")
    path = folder / shards.REJECTED
    kept = path.read_bytes().count(b"\n") if path.exists() else 0
    if kept != lost:
        findings.problem(f"{shards.REJECTED} holds {counted(kept, 'row')}, by the manifest {lost} were left out.")


def _check_vocabulary(manifest: Manifest, folder: Path, findings: Findings) -> dict[Side, SideVocabulary] | None:
    """Whether the file of tokens is whole, and its map follows from what they spell.

    Returns both sides' tokens, if they can be read.
    """
    if manifest.vocabulary is None:
        return None
    if (problem := manifest.vocabulary_problem(folder)) is not None:
        findings.problem(f"{problem}.")
        return None
    try:
        sides: dict[Side, SideVocabulary] = {side: read_side(folder, side) for side in SIDES}
    except ValueError as error:
        findings.problem(f"{error}.")
        return None
    nearest = None
    if manifest.config.get("mined") == "nearest":
        try:
            nearest = read_nearest(folder, sides)
        except ValueError as error:
            findings.problem(f"{error}.")
            return None
    if (folder / VOCABULARY).read_bytes() != vocabulary_file(sides, shared_tokens(sides), nearest):
        findings.problem(f"{VOCABULARY} has other shared tokens than follow from what the tokens spell.")
    return sides
