"""`mta-prep verify CACHE`: whether a teacher cache is whole and holds what it says.

Always: checksums, and the index and counts against the manifest. Unless quick, every shard's tensors
(`pipeline.cache.verify_tensors`). With the dataset, that rows, units and tokens are the dataset's.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.dataset.findings import Findings, check_config, looked_at
from schemas import arrow
from schemas import signals as names
from schemas.config import CacheConfig
from schemas.dataset import tables
from schemas.errors import DamagedError
from schemas.manifest import CacheManifest, read_cache_manifest, read_manifest
from trainer.cache_folder import CacheFolder


def verify(folder: Path, *, quick: bool, dataset: Path | None) -> Findings:
    """Check `folder`, and that it is of `dataset` if that is given. Raises `StateError` without a readable manifest."""
    manifest = read_cache_manifest(folder)
    config = CacheConfig.parse(manifest.config, str(folder))
    findings = Findings(checked={"shards": 0, "rows": 0, "tokens": 0, "units": 0, "numbers": 0})
    if dataset is not None:
        _check_fingerprint(dataset, manifest, findings)
    check_config(folder, config, findings)

    def problem_of(name: str) -> str | None:
        return manifest.files[name].problem((folder / name).parent, content=True)

    for name, problem in zip(manifest.files, looked_at(problem_of, [*manifest.files]), strict=True):
        if problem is not None:
            findings.problem(f"{name} {problem}.")
    if findings.found:
        return findings
    findings.checked["shards"] = len(manifest.shards)
    try:
        index = CacheFolder[np.ndarray](folder).index
    except DamagedError as error:
        findings.problem(f"{error.what}.")
        return findings
    _check_index(index, manifest, config, dataset, findings)
    if quick:
        return findings
    from pipeline.cache.verify_tensors import check_tensors  # here, since it takes seconds to import

    check_tensors(folder, manifest, config, index, dataset, findings)
    return findings


def _check_fingerprint(dataset: Path, manifest: CacheManifest, findings: Findings) -> None:
    fingerprint = read_manifest(dataset).teacher_fingerprint
    if fingerprint != manifest.teacher_fingerprint:
        findings.problem(
            f"It is no cache of {dataset}: texts, units or the teacher's tokens differ (teacher fingerprint "
            f"{manifest.teacher_fingerprint[:16]} in the cache, {fingerprint[:16]} in the dataset)."
        )


def _check_index(
    index: pa.Table, manifest: CacheManifest, config: CacheConfig, dataset: Path | None, findings: Findings
) -> None:
    bounds = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
    rows = np.arange(manifest.rows)
    shard = np.searchsorted(bounds, rows, side="right") - 1
    for column, expected in (("shard", shard), ("row", rows - bounds[shard])):
        if not np.array_equal(arrow.numbers(index.column(column)), expected):
            findings.problem(f"{names.INDEX}: column `{column}` does not say where the rows lie.")
    if int(arrow.numbers(index.column("tokens")).sum(dtype=np.int64)) != manifest.tokens:
        findings.problem(f"{names.INDEX} does not add up to the {manifest.tokens} tokens of the manifest.")
    if dataset is not None:
        found = read_manifest(dataset)
        last = min(found.rows_out, config.limit or found.rows_out)
        parts = tables(dataset, found.shards, ["id"], 0, last)
        ids = pa.chunked_array([chunk for table in parts for chunk in table.column("id").chunks], pa.string())
        if not ids.combine_chunks().equals(index.column("id").combine_chunks()):
            findings.problem(f"{names.INDEX}: its ids are not those of {dataset}, in that order.")
