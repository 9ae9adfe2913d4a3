"""Installed spaCy pipelines: loading, identity, and memory that does not grow with the corpus."""

import hashlib
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import spacy
from spacy.about import __version__ as spacy_version
from spacy.language import Language

from schemas.errors import UsageError

#: How a user gets a pipeline; ends every error about a missing one.
HOW_TO_INSTALL = 'Install one with `pip install "mta-prep[spacy-model]"`, or name an installed pipeline or its folder.'
#: Distinct strings that stay in memory, with their tokenization (about half a kilobyte each).
_KEPT_STRINGS = 200_000


def load_pipeline(name: str, components: Collection[str]) -> Language:
    """The pipeline with only those of `components` that it has, and the embedding layers that they listen to.

    `name` is an installed package or a folder. Raises `UsageError` where there is no such pipeline.
    """
    try:
        pipeline = spacy.load(name)
    except OSError:
        raise UsageError(f"No spaCy pipeline `{name}` is installed here. {HOW_TO_INSTALL}") from None
    wanted = set(components)
    sources = {n for n, c in pipeline.components if wanted.intersection(getattr(c, "listening_components", ()))}
    for component in pipeline.component_names:
        if component not in wanted | sources:
            pipeline.remove_pipe(component)
        elif component in pipeline.disabled:
            pipeline.enable_pipe(component)
    return pipeline


def pipeline_identity(name: str, pipeline: Language) -> dict[str, Any]:
    """Name, version and content hash of a loaded pipeline, and spaCy's version."""
    return {
        "model": name,
        "model_version": pipeline.meta["version"],
        "model_sha256": _folder_hash(pipeline.path),
        "components": pipeline.pipe_names,
        "spacy": spacy_version,
    }


def _folder_hash(folder: Path) -> str:
    """SHA-256 over the sorted relative names and the contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def bounded_memory(pipeline: Language) -> AbstractContextManager[object]:
    """A context for one call's documents: new strings are kept until there are many, and from then on freed on leaving.

    spaCy's string store never shrinks outside a memory zone; a zone from the start would look up every common word
    anew in each call. No document made inside may be used outside.
    """
    return pipeline.memory_zone() if len(pipeline.vocab.strings) > _KEPT_STRINGS else nullcontext()
