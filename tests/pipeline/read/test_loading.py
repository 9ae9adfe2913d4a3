"""Which tokenizers load, what their identity says, which are refused and with what advice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.read.records import Reason
from pipeline.read.spelling import continuation
from pipeline.read.tokenizers import Encoding, OffsetTokenizer
from rows import prompted, response_start
from schemas.config import SideConfig
from schemas.errors import ResourceError, UserError


def backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat"], trainer)
    return tokenizer


def load(path: Path | str, **config: object) -> OffsetTokenizer:
    return OffsetTokenizer("teacher", SideConfig(tokenizer=str(path), **config), "truncate")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(tokenizer: Tokenizer, **special: str) -> Path:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "mine")
        return tmp_path / "mine"

    return write


def names(tokenizer: OffsetTokenizer, text: str, start: int = 0) -> list[str]:
    [encoding] = tokenizer.encode(prompted([text], [start]))
    assert isinstance(encoding, Encoding)
    return [text[a:b] if a >= 0 else "+" for a, b in encoding.offsets.tolist()]


def test_a_folder_and_its_file_are_the_same_tokenizer(save):
    folder = save(backend(), eos_token="</s>")
    identity = load(folder).identity()
    assert load(folder / "tokenizer.json").identity() == identity
    assert identity["name"] == "mine"
    assert str(folder.parent) not in json.dumps(identity)


def test_a_bare_file_knows_no_eos(tmp_path):
    path = tmp_path / "tokenizer.json"
    backend().save(str(path))
    tokenizer = load(path)
    assert (tokenizer.identity()["suffix"], tokenizer.identity()["suffix_source"]) == ([], None)
    assert "+" not in names(tokenizer, "the cat")


def test_identity_ignores_truncation_and_padding_and_notices_the_rest(save):
    plain = load(save(backend(), eos_token="</s>")).identity()
    padded = backend()
    padded.enable_truncation(3)
    padded.enable_padding(length=9, pad_id=1, pad_token="</s>")
    folder = save(padded, eos_token="</s>")
    assert load(folder).identity() == plain
    assert load(folder, max_length=7).identity() | {"max_length": None} == plain
    assert len(names(load(folder), "the cat sat")) > 3
    other = backend()
    other.normalizer = normalizers.NFC()
    assert load(save(other, eos_token="</s>")).identity()["sha256"] != plain["sha256"]


def test_special_tokens_come_from_the_post_processor_and_eos_only_if_it_adds_none(save):
    tokenizer = backend()
    assert names(load(save(tokenizer, bos_token="<s>", eos_token="</s>")), "the cat")[0] != "+"
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    loaded = load(save(tokenizer, eos_token="</s>"))
    assert (loaded.identity()["prefix"], loaded.identity()["suffix_source"]) == (["<s>"], "eos")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    loaded = load(save(tokenizer, eos_token="</s>"))
    assert (loaded.identity()["suffix"], loaded.identity()["suffix_source"]) == (["</s>"], "post-processor")
    row = names(loaded, "the cat", 4)
    assert [row[0], row[-1], row.count("+")] == ["+", "+", 2]


@pytest.mark.parametrize("behind", ["", "\n", " \r\n\t"])
def test_no_second_bos_and_eos_on_text_that_was_rendered_before(save, behind):
    tokenizer = backend()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    loaded = load(save(tokenizer, eos_token="</s>"))
    row = [name for name in names(loaded, f"\n<s>the cat</s>{behind}", 8) if name.strip()]
    assert (row[0], row[-1], row.count("+")) == ("<s>", "</s>", 0)
    row = names(loaded, f"</s>the cat<s>{behind}", 8)  # the other way round they are text
    assert (row[0], row[-1], row.count("+")) == ("+", "+", 2)
    cut = load(save(tokenizer, eos_token="</s>"), max_prompt_length=1)
    assert names(cut, "<s>the cat</s>", 7)[0] == "+"  # its own is cut away


def test_an_eos_can_be_named(save):
    folder = save(backend())
    assert "names no end-of-sequence token" in load(folder).note()
    assert "--teacher-eos TOKEN" in load(folder).note()
    named = load(folder, eos="</s>")
    assert named.note() is None
    assert (named.identity()["suffix"], named.identity()["suffix_source"]) == (["</s>"], "config")
    assert names(named, "the cat")[-1] == "+"
    with pytest.raises(UserError, match=r"mine' has no token '<end>'\. Its special tokens: <s>, </s>\."):
        load(folder, eos="<end>")
    tokenizer = backend()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    assert load(save(tokenizer), eos="<s>").identity()["suffix"] == ["<s>"]


def test_chance_is_taken_out(save):
    tokenizer = backend()
    tokenizer.model.dropout = 0.9
    loaded = load(save(tokenizer, eos_token="</s>"))
    assert len({tuple(names(loaded, "the cat sat the cat sat")) for _ in range(20)}) == 1


def test_a_continued_text_gets_no_dummy_prefix_but_marks_of_words_stay():
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    bytes_stage = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    prepend, replace = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace"}

    def stages(*inner: dict) -> dict:
        return {"type": "Sequence", "pretokenizers": list(inner)}

    def continued(pre_tokenizer: dict | None, normalizer: dict | None = None) -> dict:
        return continuation({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer})

    assert continued(metaspace)["pre_tokenizer"]["prepend_scheme"] == "never"
    assert continued(stages(bytes_stage))["pre_tokenizer"]["pretokenizers"][0]["add_prefix_space"] is False
    words = stages({"type": "WhitespaceSplit"}, metaspace)
    assert continued(words)["pre_tokenizer"] == words
    first = stages({"type": "WhitespaceSplit"}, metaspace | {"prepend_scheme": "first"})
    assert continued(first)["pre_tokenizer"]["pretokenizers"][1]["prepend_scheme"] == "never"
    assert continued(None, prepend)["normalizer"] is None
    both = {"type": "Sequence", "normalizers": [prepend, replace]}
    assert continued(None, both)["normalizer"]["normalizers"] == [replace]


def test_limits_drop_or_cut(save):
    folder = save(backend(), eos_token="</s>")
    config = SideConfig(tokenizer=str(folder), max_length=4, max_prompt_length=2)
    text = "sat the cat"
    [dropped, fits] = OffsetTokenizer("teacher", config, "drop").encode(prompted([text, "cat"], [8, 0]))
    assert dropped == Reason("teacher: prompt longer than max_prompt_length")
    assert isinstance(fits, Encoding)
    [cut] = OffsetTokenizer("teacher", config, "truncate").encode(prompted([text], [8]))
    assert isinstance(cut, Encoding)
    assert cut.truncated
    assert response_start(cut) == 2
    assert cut.offsets[1, 1] >= 7  # the prompt keeps its end
    assert cut.offsets[2].tolist()[0] == 8


@pytest.mark.parametrize(
    ("prompt", "response", "prompt_limit", "expected"),
    [
        (3, 3, None, (3, 3, True)),
        (9, 9, None, (4, 4, False)),  # half each
        (9, 2, None, (5, 2, True)),  # a short response stays whole, and the prompt has the rest
        (2, 9, None, (2, 6, False)),  # and the other way round
        (5, 3, None, (4, 3, True)),  # an eos behind a whole response is worth a token of the prompt
        (4, 4, None, (4, 4, False)),  # but not below half
        (30, 1, None, (6, 1, True)),
        (9, 9, 6, (6, 2, False)),  # a prompt limit that leaves room is what the prompt may take
        (9, 9, 8, (4, 4, False)),  # one that leaves none is as good as none
        (9, 1, 2, (2, 1, True)),
    ],
)
def test_a_row_over_the_limit_is_cut_at_both_ends(save, prompt, response, prompt_limit, expected):
    """Limit 8, no prefix, one token a word: tokens of prompt and response that stay, and whether eos follows."""
    config = SideConfig(tokenizer=str(save(backend(), eos_token="</s>")), max_length=8, max_prompt_length=prompt_limit)
    texts = " cat" * prompt, " cat" * response
    [cut] = OffsetTokenizer("teacher", config, "truncate").encode(prompted(["".join(texts)], [len(texts[0])]))
    assert isinstance(cut, Encoding)
    rest = cut.offsets[response_start(cut) :]
    closed = bool((rest[-1] == -1).all())
    assert (response_start(cut), len(rest) - closed, closed) == expected
    assert cut.truncated == ((prompt, response, True) != expected)
    if expected[0]:
        assert cut.offsets[response_start(cut) - 1, 1] == len(texts[0])


def refusal(path: Path | str, kind: type[UserError] = UserError) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert caught.type is kind
    assert str(path) in str(caught.value)
    assert "teacher" in str(caught.value)
    return str(caught.value)


def test_unusable_tokenizers_are_refused_with_a_remedy(tmp_path):
    assert "holds no tokenizer" in refusal(tmp_path)
    assert "no such folder or file" in refusal(tmp_path / "absent")
    assert "no such folder or file" in refusal("./absent")
    (tmp_path / "tokenizer.json").write_text("{broken")
    assert "intact tokenizer.json" in refusal(tmp_path)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert "slow tokenizer" in refusal(slow)
    code = tmp_path / "code"
    code.mkdir()
    (code / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [null, "own.Own"]}}'
    )
    assert "code of its own" in refusal(code)


def test_hub_ids_out_of_reach(tmp_path):
    assert "network" in refusal("nobody/nothing-of-this-name", ResourceError)
    assert "no valid hub id" in refusal("not a name!")


def test_an_untraceable_tokenizer_is_refused_by_name(save):
    tokenizer = backend()
    tokenizer.normalizer = normalizers.Replace(Regex(r"(?<=the )cat"), "sat")
    loaded = load(save(tokenizer))
    with pytest.raises(UserError, match=r"'.*mine' is refused: in 3 of 4 audited rows"):
        loaded.audit(prompted(["the cat"] * 3 + ["sat"], [0] * 4))
    assert loaded.encode(prompted(["the cat"], [0])) == [Reason("teacher: offsets could not be verified")]
    assert loaded.offset_counts["rows_refused"] == 1
