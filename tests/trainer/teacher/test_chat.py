"""Structure across tokenizers and templates: the teacher reads conversations its own way, the student in Alpaca's."""

import numpy as np
import pytest
import torch

from cached_batches import CHUNKS, WORDS, needing
from pipeline.dataset.prepare import prepare
from schemas.config import ModelConfig, ParseConfig
from schemas.training import StudentConfig
from trainer.batches.documents import Documents
from trainer.objectives import build
from trainer.objectives.base import Setting
from trainer.student.distiller import Distiller
from trainer.student.model import load_student
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.live import LiveTeacher

STUDENT = {
    "model_type": "gpt2",
    "vocab_size": 4096,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 2048,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    out = tmp_path_factory.mktemp("chats") / "dataset"
    values = {
        "inputs": ["embedded:conversations"],
        "teacher": {"tokenizer": "embedded:sentencepiece-bpe"},
        "student": {"tokenizer": "embedded:bytelevel-bpe", "template": "alpaca"},
    }
    outcome = prepare(ParseConfig.parse(values, "test"), out, workers=1, quiet=True)
    assert outcome.manifest.dropped == {
        "student: chat template alpaca: it refuses the conversation": 2,  # calls of tools
    }
    return out


def test_each_side_reads_its_own_template(chats):
    documents = Documents(chats)
    identities = documents.manifest.tokenizers
    assert [identities[side]["template"]["source"] for side in ("teacher", "student")] == ["native", "alpaca"]
    assert not documents.same_tokens
    for name in ("words", "chunks", "phrases"):
        left_out = documents.left_out(name)
        assert left_out.either <= 0.007 * left_out.units
    assert max(len(documents.responses("student", np.array([row]))[0]) for row in range(len(documents))) >= 4


def test_the_loss_from_the_cache_is_that_of_the_live_teacher(chats, make_cache, tiny_teacher):
    documents = Documents(chats)
    wanted = needing(documents, WORDS, CHUNKS)
    cached = CachedTeacher(Caches([make_cache(dataset=str(chats), signals=["relations"])], documents), wanted)
    live = LiveTeacher(ModelConfig(model=str(tiny_teacher)), documents, wanted)
    student = load_student(StudentConfig.parse({"init": "config", "config": STUDENT}, "test"), seed=0)
    terms = build({"ce": {}, "dsa": {}}, Setting((WORDS, CHUNKS), student.hidden_size, 48), "objectives")
    distiller = Distiller(student, terms, None)
    losses = []
    for teacher in (cached, live):
        batch = teacher.fetch([0, 5, 12, 17])
        assert len(batch.positions) > 100
        loss, _ = distiller(batch, distiller.denominators(batch), {"ce": 0.0, "dsa": 1.0})
        losses.append(float(loss.detach()))
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 0
