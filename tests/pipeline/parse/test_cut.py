"""A smaller parser is a part of the one it was cut from: its numbers, its files, and of the whole size its trees."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.parse import model
from pipeline.parse.cut import Size, cut
from pipeline.parse.engine import Engine
from pipeline.parse.places import EMBEDDED, WEIGHTS
from pipeline.text import Words
from schemas.errors import UserError

SENTENCES = [
    Words(tuple(text.split()), (True,) * len(text.split()))
    for text in ("The small cat has been sleeping on the old sofa .", "Which birds sing ?", "zyzzyva")
]


def trees(folder):
    network = model.load_for_inference(str(folder)).network
    return [(tree.spans.tolist(), tree.labels) for tree in Engine(network).constituents(SENTENCES)]


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smaller")
    kept = cut(EMBEDDED, folder, Size(encoder_layers=2, layers=1, label_hidden=64, frequent=500), ["Zyzzyva sleeping"])
    return folder, kept


def test_all_of_a_parser_gives_its_trees(tmp_path):
    kept = cut(EMBEDDED, tmp_path, Size(), [])
    assert kept == {"encoder_layers": 6, "layers": 2, "label_hidden": 256, "word_pieces": 16881}
    assert trees(tmp_path) == trees(EMBEDDED)


def test_what_is_kept_is_what_was_stored(smaller):
    folder, kept = smaller
    whole, part = load_file(EMBEDDED / WEIGHTS), load_file(folder / WEIGHTS)
    assert part.keys() < whole.keys()
    rows = {tuple(row) for row in whole["pretrained_model.embeddings.word_embeddings.weight.int8"].tolist()}
    pieces = part["pretrained_model.embeddings.word_embeddings.weight.int8"]
    assert len(pieces) == kept["word_pieces"] < 1000
    assert all(tuple(row) in rows for row in pieces.tolist())
    assert not any(".layer.2." in name or "encoder.layers.1." in name for name in part)
    same = [name for name in part if not name.startswith("f_label") and "word_embeddings" not in name]
    assert all(torch.equal(part[name], whole[name]) for name in same)
    assert (folder / WEIGHTS).stat().st_size < (EMBEDDED / WEIGHTS).stat().st_size / 3


def test_the_engine_and_benepar_read_it_alike(smaller):
    """What training opens, benepar's own modules, and what the pipeline runs give the same trees."""
    folder, _ = smaller
    trained = Engine(model.load(str(folder)).network).constituents(SENTENCES)
    assert [(tree.spans.tolist(), tree.labels) for tree in trained] == trees(folder)


def test_words_in_use_stay_whole_and_others_fall_apart(smaller):
    tokenizer = model.load_for_inference(str(smaller[0])).network.retokenizer.tokenizer.backend_tokenizer
    known, rare = (tokenizer.encode(word, add_special_tokens=False).tokens for word in ("sleeping", "geographical"))
    assert known == ["sleeping"]
    assert len(rare) > 1
    assert "[UNK]" not in rare


@pytest.mark.parametrize(
    ("size", "flag"),
    [
        (Size(encoder_layers=7), "--encoder-layers 7"),
        (Size(layers=3), "--layers 3"),
        (Size(label_hidden=257), "--label-hidden 257"),
    ],
)
def test_more_than_there_is_is_refused(size, flag, tmp_path):
    with pytest.raises(UserError, match=f"^{flag} is more than the parser to start with has"):
        cut(EMBEDDED, tmp_path / "none", size, [])
    assert not (tmp_path / "none").exists()
