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


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two runs as the trainer leaves them: of cross-entropy alone, and of more; their evaluations lie in their folders."""
    from schemas.training import TrainConfig

    folders = []
    for name, objectives in {"sft": {"ce": {}}, "mta<b>": {"ce": {"weight": 0.5}, "dsa": {"weight": 2.0}}}.items():
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        config = {"student": {"model": "m"}, "data": {"dataset": "d", "caches": ["c"]}, "objectives": objectives}
        config = TrainConfig.parse(config | {"steps": 600, "out": str(folder)}, "test")
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        lines = []
        for step in range(1, 601):
            terms = {term: 4 / step**0.1 + place for place, term in enumerate(objectives)}
            speed = {"lr": 1e-4, "grad_norm": 1.0, "tokens_per_second": 100.0, "memory_gb": 1.5}
            lines.append({"step": step, "epoch": step / 60, "loss": sum(terms.values()), **terms, **speed})
            if step % 200 == 0:
                lines.append({"step": step, **{f"held_out_{term}": value for term, value in terms.items()}})
                lines[-1]["held_out_loss"] = sum(terms.values()) + 600 - step
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (folder / "dolly.json").write_text(evaluation(str(folder), len(folders)), encoding="utf-8")
        folders.append(folder)
    return folders


def evaluation(model: str, better: int) -> str:
    """A result on forty rows with two seeds, of a model that scores so much better on every row."""
    from trainer.evaluation.results import FileResult, Result, Score

    scores = [(float(row % 7 + better), float(row % 5 + better)) for row in range(40)]
    means = [sum(by_seed) / len(scores) for by_seed in zip(*scores, strict=True)]
    file = FileResult(
        name="dolly",
        rows=40,
        sha256="0" * 64,
        cut_prompts=0,
        wordless=0,
        rouge_l=Score.of(means),
        exact_match=Score.of([0.0, 0.0]),
        tokens=12.5,
        stopped=0.5,
        reasoned=0.0,
        unanswered=0.0,
        row_numbers=tuple(range(40)),
        scores=tuple(scores),
        matches=((False, False),) * 40,
    )
    config = {"seeds": [1, 2], "rouge_tokenizer": "field"}
    return Result(model={"name": model}, config=config, versions={}, files=(file,)).model_dump_json()
