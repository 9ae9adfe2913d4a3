"""The card of a teacher cache: what is in it, of which teacher and texts, and how to read it."""

from schemas.config import CacheConfig
from schemas.manifest import CacheManifest


def cache_card(manifest: CacheManifest) -> str:
    """Markdown, all of it out of the manifest."""
    config = CacheConfig.parse(manifest.config, "the manifest")
    teacher = manifest.teacher
    revision = f", revision {teacher['revision']}" if teacher["revision"] else ""
    weights = teacher["sha256"][:16]
    layers = ", ".join(f"{each.layer} ({each.granularity})" for each in config.layers) or "none"
    kept = ""
    if config.response_only:
        kept = f"""
- **tokens** of which states, `final` and what is of the next token are kept: {manifest.counts["learnt"]}, those in the dataset's
  `teacher_responses` and the one before each"""
    if config.window is not None and "relations" in config.signals:
        kept += f"""
- **pairs** of a document with over {2 * config.window} units of a layer: those of units less than {config.window} units apart
  (`--set window=N` makes another, `--set window=null` has all)"""
    if manifest.tied_embeddings:
        kept += """
- **embeddings**: the teacher's input embeddings are its output matrix"""
    return f"""# Teacher cache

What a teacher says of {manifest.rows} documents ({manifest.tokens} tokens), as training a student with structure-aware losses
needs it, so that no teacher has to be in memory. Made by `mta-prep` {manifest.versions["mta-prep"]}.

- **teacher**: `{teacher["name"]}`{revision} ({teacher["architecture"]}, {teacher["depth"]} layers), sha256 `{weights}`
- **signals**: {", ".join(config.signals)}
- **layers**: {layers}, as indices into `hidden_states`{kept}
- **texts, units and tokens**: fingerprint `{manifest.teacher_fingerprint}`; it serves every student of that dataset

```python
from trainer.cache import TeacherCache
cache = TeacherCache("this-folder")
cache.layers, len(cache), cache.ids[:3]
```

`manifest.json` has the full config, counts and checksums; `mta-prep verify` checks them, `mta-prep inspect` shows a row. Hidden
states and output matrices are made of the texts and the model: both licences apply, and `mta-prep push` asks for them.
"""
