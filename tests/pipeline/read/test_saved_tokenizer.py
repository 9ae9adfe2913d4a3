"""A tokenizer opened without transformers is the one that `AutoTokenizer` builds, or is left to it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.read import saved_tokenizer
from pipeline.read.loading import load_fast_tokenizer
from pipeline.read.saved_tokenizer import open_saved
from schemas import embedded
from schemas.config import SideConfig
from trainer.models.tokenizer import surrounding_tokens

NAMES = ("bytelevel-bpe", "sentencepiece-bpe")


def written(folder: Path, definition: dict[str, object] | None = None, **settings: object) -> Path:
    """An embedded tokenizer's files, with some entries of both replaced."""
    own = embedded.NAMES["sentencepiece-bpe"]
    for name, changes in (("tokenizer.json", definition or {}), ("tokenizer_config.json", settings)):
        content = json.loads((own / name).read_text(encoding="utf-8")) | changes
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def assert_same(folder: Path | str) -> None:
    """It is opened here, and nothing that is read of it differs."""
    saved = open_saved(str(folder))
    theirs = AutoTokenizer.from_pretrained(embedded.resolve(str(folder)))
    assert saved is not None
    assert saved.backend.to_str() == theirs.backend_tokenizer.to_str()
    assert saved.backend.encode_special_tokens == theirs.backend_tokenizer.encode_special_tokens
    loaded = load_fast_tokenizer("teacher", SideConfig(tokenizer=str(folder)))
    assert (loaded.eos, (loaded.before, loaded.after)) == (theirs.eos_token_id, surrounding_tokens(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_ones_are_the_same(name):
    assert_same(f"embedded:{name}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["mine", "llama-bert-gpt2"])  # transformers reads families from names
def test_what_transformers_saves_is_the_same(tmp_path, name, folder):
    AutoTokenizer.from_pretrained(embedded.NAMES[name]).save_pretrained(tmp_path / folder)
    assert_same(tmp_path / folder)


@settings(max_examples=50)
@given(st.text(max_size=40))
@pytest.mark.parametrize("name", NAMES)
def test_it_gives_the_same_ids(name, text):
    mine, theirs = open_saved(f"embedded:{name}"), _theirs(name)
    assert mine is not None
    text = text.encode("utf-8", "replace").decode("utf-8")
    for special in (True, False):
        encoding = mine.backend.encode(text, add_special_tokens=special)
        assert encoding.ids == theirs(text, add_special_tokens=special)["input_ids"]


def _theirs(name: str, opened: dict[str, PreTrainedTokenizerFast] = {}) -> PreTrainedTokenizerFast:  # noqa: B006
    if name not in opened:
        opened[name] = AutoTokenizer.from_pretrained(embedded.NAMES[name])
    return opened[name]


@pytest.mark.parametrize("eos", [None, "<s>"])
def test_the_settings_name_the_eos(tmp_path, eos):
    assert_same(written(tmp_path, eos_token=eos))


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": None},
        {"auto_map": {"AutoTokenizer": [None, "own.Own"]}},
        {"add_bos_token": True},
        {"add_prefix_space": True},
        {"split_special_tokens": True},
        {"pad_token": "<pad>"},  # is no token yet
        {"pad_token": "the"},  # nor is one that is not special
        {"eos_token": {"content": "</s>", "lstrip": True}},
        {"extra_special_tokens": ["<more>"]},
        {"image_token": "<image>"},
        {"added_tokens_decoder": {"7": {"content": "<seven>"}}},
        {"backend": "sentencepiece"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_else_the_settings_may_ask_for_is_left_to_transformers(tmp_path, settings):
    assert open_saved(str(written(tmp_path, **settings))) is None


@pytest.mark.parametrize("name", ["config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.4.json"])
def test_other_files_may_say_something(tmp_path, name):
    written(tmp_path)
    assert open_saved(str(tmp_path)) is not None
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert open_saved(str(tmp_path)) is None


def test_what_transformers_would_add_to_a_definition_is_left_to_it(tmp_path, monkeypatch):
    assert open_saved(str(written(tmp_path, {"post_processor": None}))) is None
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    assert open_saved(str(written(tmp_path, {"truncation": cut}))) is None
    written(tmp_path)
    monkeypatch.setattr(
        saved_tokenizer, "LARGEST", Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() - 1
    )
    assert open_saved(str(tmp_path)) is None


@pytest.mark.parametrize("content", ["", "{broken", "[]", "{}", '{"added_tokens": 3}', "\ud800"])
@pytest.mark.parametrize("name", sorted(saved_tokenizer.FILES))
def test_damaged_files_are_left_to_transformers_which_says_what_is_wrong(tmp_path, name, content):
    (written(tmp_path) / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert open_saved(str(tmp_path)) is None


def test_no_folder(tmp_path):
    assert open_saved(str(tmp_path / "absent")) is None
    (tmp_path / "file").touch()
    assert open_saved(str(tmp_path / "file")) is None
