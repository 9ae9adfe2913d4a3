"""A stored parser opened without benepar and transformers is the parser that they open."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parse import model, network
from pipeline.parse.engine import Engine
from pipeline.parse.stored import StoredParser, is_plain_bert, open_tokenizer
from pipeline.text import Words
from schemas import embedded


@pytest.fixture(scope="module")
def engines(embedded_parser):
    stored = model.load_for_inference("embedded")
    assert type(stored.network) is StoredParser
    assert (stored.name, stored.sha256) == (embedded_parser.name, embedded_parser.sha256)
    return Engine(stored.network), Engine(embedded_parser.network)


def test_it_has_the_weights_the_settings_and_the_limits(engines, embedded_parser):
    mine, theirs = engines
    state = {k: v for k, v in embedded_parser.network.state_dict().items() if not model.UNREAD.match(k)}
    stored = mine.parser.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)
    assert (mine.labels, mine.tags) == (theirs.labels, theirs.tags)
    assert (mine.max_subwords, mine.max_words) == (theirs.max_subwords, theirs.max_words)
    for name in ("start_token_idx", "stop_token_idx", "is_t5", "is_gpt2"):
        assert getattr(mine.parser.retokenizer, name) == getattr(theirs.parser.retokenizer, name), name
    norms = [(m.parser.pretrained_model.embeddings.LayerNorm, m.parser.encoder.layers[0].norm_ff) for m in engines]
    assert [norm.eps for norm in norms[0]] == [norm.eps for norm in norms[1]]
    attention = [m.parser.encoder.layers[0].self_attn.scaling_factor for m in engines]
    assert attention[0] == attention[1]
    assert mine.parser.decoder.force_root_constituent == theirs.parser.decoder.force_root_constituent


words = st.lists(st.tuples(st.text(min_size=1, max_size=12), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=40)
@given(words)
def test_its_subwords_and_trees_are_the_same(engines, pairs):
    sentence = Words(tuple(word for word, _ in pairs), tuple(space for _, space in pairs))
    mine, theirs = (engine.encode([sentence])[0] for engine in engines)
    assert np.array_equal(mine.input_ids, theirs.input_ids)
    assert np.array_equal(mine.words_from_tokens, theirs.words_from_tokens)
    mine, theirs = (engine.constituents([sentence])[0] for engine in engines)
    assert (mine is None) == (theirs is None)
    if mine is not None:
        assert np.array_equal(mine.spans, theirs.spans)
        assert (mine.labels, mine.tags) == (theirs.labels, theirs.tags)


def test_a_sentence_is_neither_cut_nor_filled_up(engines):
    long = Words(("antidisestablishmentarianism",) * 90, (True,) * 90)
    mine, theirs = (network.encode(engine.parser, [long])[0] for engine in engines)
    assert len(mine.input_ids) == len(theirs.input_ids) > 128


def test_a_tokenizer_whose_files_disagree_is_left_to_transformers(tmp_path):
    folder = Path(embedded.DATA / "parser")
    definition, settings_ = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    assert is_plain_bert(definition, settings_)
    for change in ({"do_lower_case": False}, {"strip_accents": True}, {"tokenizer_class": "RobertaTokenizer"}):
        assert not is_plain_bert(definition, settings_ | change), change
    assert not is_plain_bert(definition | {"normalizer": None}, settings_)
    assert open_tokenizer(tmp_path) is None
