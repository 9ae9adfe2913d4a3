"""The dataset card: front matter for the Hub, and what a reader needs to know, all of it out of the manifest."""

from typing import Any

import yaml

from schemas.columns import meanings
from schemas.manifest import Manifest

#: Upper bounds of the Hub's size categories.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for bound, name in SIZES if rows < bound), "n>10M")


def _side_line(side: str, tokenizer: dict[str, Any]) -> str:
    revision = f", revision {tokenizer['revision']}" if tokenizer.get("revision") else ""
    template = tokenizer.get("template")
    read = f", chat template {template['source']} (sha256 `{template['sha256'][:16]}`)" if template else ""
    return f"- **{side}**: `{tokenizer['name']}`{revision} (sha256 `{tokenizer['sha256'][:16]}`){read}"


def dataset_card(manifest: Manifest, trees: bool, mined: bool) -> str:
    """Markdown with YAML front matter. The licence is the texts' own, which we cannot know: it is left for the owner."""
    front = {
        "pretty_name": "Prepared for structure-aware distillation",
        "task_categories": ["text-generation"],
        "size_categories": [size_category(manifest.rows_out)],
        "tags": ["mta-prep", "knowledge-distillation", "constituency-parsing"],
        "configs": [{"config_name": "default", "data_files": "data-*.arrow"}],
    }
    columns = "\n".join(f"| `{name}` | {meaning} |" for name, (_, meaning) in meanings(trees, mined).items())
    sides = "\n".join(_side_line(side, tokenizer) for side, tokenizer in manifest.tokenizers.items())
    parser = manifest.parser
    lost = {**manifest.rejected, **manifest.dropped}
    losses = "".join(f"\n- {count} left out: {reason}" for reason, count in lost.items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# Prepared dataset

{manifest.rows_out} documents with words, chunks and phrases (noun and verb phrases) as character spans and as token spans of
two tokenizers, made by `mta-prep` {manifest.versions["mta-prep"]}. The texts keep the licence of their source, which
`mta-prep push` asks for and states here.

```python
from datasets import load_from_disk
rows = load_from_disk("this-folder")
```

{sides}
- **parser**: {parser["kind"]} `{parser["name"]}` (sha256 `{parser["sha256"][:16]}`)
- **fingerprint**: `{manifest.fingerprint}`; teacher side `{manifest.teacher_fingerprint}`
- {manifest.rows_in} rows read, {manifest.rows_out} written{losses}

| column | meaning |
|---|---|
{columns}

Spans are half-open `[start, end)`; characters are Unicode code points of `text`; `[-1, -1)` marks a special token's offsets, or a
unit without a faithful token span on that side. `manifest.json` has the full config, counts and checksums; `mta-prep verify`
checks them.
"""
