"""Parser models on disk: what is stored comes back, stock benepar reads our export, trees equal stock benepar's."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parse import model, network
from pipeline.parse.benepar import split_points
from pipeline.parse.cut import Size, cut
from pipeline.parse.engine import Engine
from pipeline.parse.places import EMBEDDED
from pipeline.text import Words
from schemas.errors import UserError


@given(st.integers(0, 2**31), st.sampled_from(["a.weight", "x.w_qkv_c", "x.w_o_p"]))
def test_int8_rows_come_back_within_half_a_step(seed, name):
    torch.manual_seed(seed)
    shape = {"a.weight": (5, 7), "x.w_qkv_c": (2, 6, 3, 4), "x.w_o_p": (2, 4, 6)}[name]
    weight = torch.randn(shape) * torch.rand(1)
    packed = model.pack({name: weight})
    back = model.unpack(packed)[name]
    assert back.shape == weight.shape
    rows, again = (
        model.rows_of(name, value).reshape(-1, model.rows_of(name, value).shape[-1]) for value in (weight, back)
    )
    step = packed[f"{name}.scale"][:, None]
    assert ((rows - again).abs() <= step / 2 + 1e-6).all()


def test_a_second_round_trip_changes_nothing(embedded_parser):
    state = embedded_parser.network.state_dict()
    again = model.unpack(model.pack(state))
    for name, value in again.items():
        assert torch.allclose(value, state[name], atol=1e-6), name


def test_the_embedded_model_is_small_and_holds_no_pickle():
    files = list(EMBEDDED.iterdir())
    assert sum(file.stat().st_size for file in files) < 25e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("missing", ["config.json", "parser.safetensors"])
def test_a_folder_that_is_no_parser_is_named(tmp_path, missing):
    for file in EMBEDDED.iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match=tmp_path.name):
        model.load(str(tmp_path))


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "no text": lambda data: data[:20] + b"\xff\xfe" + data[22:],
    "deep": lambda _: b"[" * 100_000,
    "a list": lambda _: b"[]",
    "nothing in it": lambda _: b"{}",
    "something else": lambda _: b'{"benepar": 3, "model": [], "architectures": ["X"]}',
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "parser.safetensors"])
def test_a_damaged_parser_is_named_or_parses(tmp_path, name, damage):
    for file in EMBEDDED.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(DAMAGE[damage]((EMBEDDED / name).read_bytes()))
    uses = [
        lambda: Engine(model.load_for_inference(str(tmp_path)).network).constituents([Words(("Yes",), (False,))]),
        lambda: model.export_for_benepar(tmp_path, tmp_path / "released"),
        lambda: cut(tmp_path, tmp_path / "small", Size(encoder_layers=1), ["Yes ."]),
    ]
    for use in uses:
        try:
            use()
        except UserError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017  # or it is of no use for that
        else:
            assert name.startswith("tokenizer"), use


def test_no_path_and_no_published_name():
    with pytest.raises(UserError, match="benepar_en3"):
        model.load("some/where/else")


SENTENCES = [
    "The small cat that I saw has been sleeping quietly on the old sofa , and wants to stay .",
    "Yes",
    "Go !",
    "What 's the capital of Portugal ?",
    "Mix the flour , the eggs and the milk , then let the batter rest for 30 minutes .",
    "( see https://example.org/a?b=c for details )",
    "« Niemand weiß es » , sagte sie .",
    "🙂 I love it 🎉 !",
    "def f ( x ) : return x + 1",
    "a " * 70 + "b",
]


def words_of(text):
    words = tuple(text.split())
    return Words(words, (*[True] * (len(words) - 1), False))


@pytest.fixture(scope="session")
def sample_sentences():
    """A few hundred sentences of the embedded corpus, as the pipeline's own segmentation gives them."""
    import json
    from pathlib import Path

    from pipeline.read.segment import Segmenter
    from schemas import embedded
    from schemas.config import SegmentConfig

    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["output"] for line in lines[::4]]
    documents = Segmenter(SegmentConfig()).segment(texts, [()] * len(texts))
    return [sentence.words for document in documents for sentence in document.sentences if sentence.parse]


def test_trees_equal_those_of_stock_benepar(embedded_parser, tmp_path_factory, sample_sentences):
    """Labelled spans and tags, with the same weights, through stock benepar's own loader and parse()."""
    import benepar

    folder = tmp_path_factory.mktemp("stock")
    model.export_for_benepar(EMBEDDED, folder)
    stock = benepar.Parser(str(folder))._parser
    sentences = [words_of(text) for text in SENTENCES] + sample_sentences[:250]
    inputs = [
        benepar.InputSentence(
            words=[network.plain_form(word) for word in sentence.words],
            space_after=list(sentence.space_after),
            escaped_words=list(sentence.words),
        )
        for sentence in sentences
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-struct's own
        theirs = stock.parse(inputs, return_compressed=True, subbatch_max_tokens=2000)
    engine = Engine(embedded_parser.network, token_budget=2048)
    ours = engine.parse(engine.encode(sentences))
    names = {index: label for label, index in stock.label_vocab.items()}
    for sentence, their, our in zip(sentences, theirs, ours, strict=True):
        expected = [
            (int(start), int(end), label)
            for start, end, index in zip(their.starts, their.ends, their.labels, strict=True)
            for label in names[int(index)].split("::")
            if label
        ]
        found = [(start, end, label) for (start, end), label in zip(our.spans.tolist(), our.labels, strict=True)]
        assert found == expected, sentence.words
        assert our.tags == tuple(stock.tag_from_index[int(tag)] for tag in their.tags)


@pytest.mark.parametrize("budget", [64, 500, 100_000])
def test_trees_do_not_depend_on_the_batch(embedded_parser, budget):
    sentences = [words_of(text) for text in SENTENCES]
    engine = Engine(embedded_parser.network, token_budget=budget)
    together = engine.parse(engine.encode(sentences))
    alone = [engine.parse(engine.encode([sentence]))[0] for sentence in sentences]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.spans, other.spans)
        assert one.labels == other.labels


def test_words_without_subwords_do_not_stop_the_parser(embedded_parser):
    engine = Engine(embedded_parser.network, token_budget=512)
    sentences = [words_of("a \u200d b"), words_of("\x00"), words_of("\u200b \u200b")]
    assert [tree.spans.shape[1] for tree in engine.parse(engine.encode(sentences))] == [2, 2, 2]


@given(st.lists(st.sampled_from(["a", "b", ",", ";", ".", ":"]), min_size=1, max_size=60), st.integers(2, 20))
def test_long_sentences_are_cut_into_pieces_that_fit_and_lose_nothing(words, longest):
    points = split_points(words, longest)
    bounds = [0, *points, len(words)]
    sizes = [b - a for a, b in pairwise(bounds)]
    assert all(0 < size <= longest for size in sizes)
    assert (points == []) == (len(words) <= longest)


def test_a_long_sentence_is_cut_at_its_strongest_mark():
    words = ["w"] * 12 + [","] + ["w"] * 2 + [";"] + ["w"] * 10
    assert split_points(words, 20) == [16]
