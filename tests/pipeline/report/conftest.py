"""Folders to report on: among them one whose every text means harm."""

import json

import pytest

#: What texts may do to a page: markup, scripts, attributes, other directions, what no line holds.
HOSTILE = [
    '<script>alert("text")</script> <img src=x onerror=alert(1)> The cat sat on the <b>mat</b>.',
    "</title></style></summary></details></main><script>alert(2)</script>{{ 7 * 7 }}{% raw %} A dog barks loudly.",
    '" onmouseover="alert(3)" style="position:fixed;inset:0 The bird\'s song & the &lt;wind&gt; went on.',
    "\u202eThe text turns around\u202c. "
    "\u05d4\u05d7\u05ea\u05d5\u05dc \u05d9\u05e9\u05df \u05e2\u05dc \u05d4\u05e9\u05d8\u05d9\u05d7. "
    "\u0627\u0644\u0642\u0637\u0629 \u062a\u0646\u0627\u0645.",
    "x" * 10_000 + " ends here.",
    "\u00a0\u200b\x07\x1b[31m red \U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301\u0301\u0301 \ufffd a\u0300"
    + "\u0300" * 200,
]


@pytest.fixture(scope="session")
def hostile(settings_for, tmp_path_factory):
    """A dataset of such rows, their ids likewise, in a folder of such a name."""
    from pipeline.dataset.prepare import prepare

    folder = tmp_path_factory.mktemp("hostile")
    rows = [{"id": f"{text[:40]}{place}", "text": text} for place, text in enumerate(HOSTILE)]
    file = folder / "rows<script>alert(4)<\u2215script>.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = folder / '"><script>alert(5)<\u2215script>'
    prepare(settings_for(inputs=[str(file)]), out, workers=1, quiet=True)
    return out
