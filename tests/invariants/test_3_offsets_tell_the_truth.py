"""Offsets tell the truth (invariant 3): on any text, for tokenizers of every common make, made here from a few lines."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from one_document import token_spans
from pipeline.dataset.decoding import Decoder
from pipeline.read.records import Reason
from pipeline.read.segment import Segmenter
from pipeline.read.tokenizers import Encoding, OffsetTokenizer
from rows import borders, prompted, response_start
from schemas.config import SegmentConfig, SideConfig

CORPUS = [
    "The small cat that I saw has been sleeping quietly on the old sofa, and wants to stay.",
    "### Instruction:\nList 3 things.\n\n### Response:\n1. one\n2. two\r\n3. three don't can't",
    "Le café est fermé; déjà vu. Straße, naïve, coöperate. Ελλάδα και Κύπρος. Это небольшой пример.",
    "猫が好きです。 日本語 中文 한국어 안녕하세요 हिन्दी தமிழ் ไทย שלום עולם مرحبا بالعالم",
    "👍 👩‍👩‍👧 ❤️ 🇫🇷 def f(x):\n\treturn x + 1",
] * 3

FRAGMENTS = [
    *(
        "Hello",
        " world",
        "The cat",
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
        "\n\n\n",
        "\t",
        "1234",
        "don't",
        "-based",
        "…",
        "“q”",
    ),
    *("\u00a0", "\u3000", "\u2028", "\x85", "\x00", "\x07", "\x1c", "\ufeff", "\u200b", "\u200c", "\u200d", "\u00ad"),
    *(
        "é",
        "e\u0301",
        "a\u0316\u0301",
        "\u0301",
        "ộ",
        "Å",
        "A\u030a",
        "ﬁ",
        "ﬃ",
        "①",
        "½",
        "Ａ",
        "ß",
        "İstanbul",
        "Ελλάς",
    ),
    *(
        "한국어",
        "\u1112\u1161\u11ab",
        "ｶﾞ",
        "日本語",
        "が",
        "か\u3099",
        "שלום",
        "مرحبا",
        "हिन्दी",
        "தமிழ்",
        "ไทย",
        "\u09c7\u09be",
    ),
    *("👍", "👍🏽", "👩\u200d👩\u200d👧", "🇫🇷", "❤\ufe0f", "𝔘", "\U00010348", "\U000e0067", "\ufffd"),
    *(
        "<|endoftext|>",
        "</s>",
        "<s>",
        "[SEP]",
        "[MASK]",
        "<unk>",
        "<0x0A>",
        "▁",
        "▁▁a",
        "##ing",
        "Ġ",
        "https://x.y/z?q=1",
    ),
]
ASSIGNED = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z"]), max_size=8)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | ASSIGNED, max_size=8).map("".join)
ANY_TEXTS = TEXTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SETTINGS = settings(max_examples=40)


def byte_level(normalizer: normalizers.Normalizer | None = None, prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
        split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<s>", "</s>"] if prefix_space else ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if prefix_space:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=True)
    return tokenizer


def frequent_parts(words: list[str], letters: int, parts: int) -> list[str]:
    """The commonest letters and longer parts of words: a vocabulary that is the same in every run, unlike a trainer's."""
    singles = Counter("".join(words))
    longer = Counter(
        word[a:b] for word in words for a in range(len(word)) for b in range(a + 2, min(len(word), a + 6) + 1)
    )

    def first(counts: Counter[str], number: int) -> list[str]:
        return sorted(counts, key=lambda part: (-counts[part], part))[:number]

    return [*first(singles, letters), *first(longer, parts)]


def sentencepiece(*, prepends: bool) -> Tokenizer:
    """SentencePiece-style BPE with byte fallback: dummy prefix by Metaspace, or by normaliser as in Llama-2."""
    pieces = frequent_parts(["▁" + word for word in " ".join(CORPUS).split()], letters=40, parts=120)
    special = ["<unk>", "<s>", "</s>"]
    listed = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [
        (a, b)
        for whole in pieces
        for a, b in [(whole[:i], whole[i:]) for i in range(1, len(whole))]
        if {a, b} <= set(pieces)
    ]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(listed)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(special)
    if prepends:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


#: What SentencePiece's `nmt_nfkc` drops, and what it writes as a space, of the characters in `FRAGMENTS`.
NMT_DROPS, NMT_BLANKS = "\x00\x07", "\u200b\ufeff\u2028\x85"


def as_t5_reads(text: str) -> str:
    """NFKC without control characters, and with spaces for what has no width."""
    kept = (" " if c in NMT_BLANKS else c for c in text if c not in NMT_DROPS)
    return unicodedata.normalize("NFKC", "".join(kept))


def unigram(*, words_first: bool) -> Tokenizer:
    """Unigram over NFKC; `words_first` as T5 and XLM-R, where every word gets the marker and runs of space collapse."""
    pieces = frequent_parts(["▁" + word for word in " ".join(CORPUS).split()], letters=120, parts=120)
    scored = [("<unk>", -20.0), ("</s>", 0.0), *((piece, -10.0 + len(piece)) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    nmt = [normalizers.Replace(Regex(f"[{NMT_DROPS}]"), ""), normalizers.Replace(Regex(f"[{NMT_BLANKS}]"), " ")]
    tokenizer.normalizer = normalizers.Sequence([*(nmt if words_first else ()), normalizers.NFKC()])
    metaspace = pre_tokenizers.Metaspace()
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace]) if words_first else metaspace
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def word_piece() -> Tokenizer:
    pieces = frequent_parts(as_bert_reads(" ".join(CORPUS)).split(), letters=120, parts=120)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    listed = [*special, *pieces, *("##" + piece for piece in pieces)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(listed)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def as_bert_reads(text: str) -> str:
    """Lower case without accents, control characters and what is invisible, written from BERT's description."""
    kept = "".join(c for c in text if c.isspace() or (unicodedata.category(c)[0] != "C" and c != "\ufffd"))
    plain = (c for c in unicodedata.normalize("NFD", kept) if unicodedata.category(c) != "Mn")
    return "".join(c.lower() for c in plain)


@dataclass(frozen=True, repr=False)
class Make:
    """A tokenizer of one make, its folder, and what it does to text, by the standard's own implementation."""

    folder: Path
    backend: Tokenizer
    fold: Callable[[str], str]
    faithful: bool  # spells every text: no row may be refused
    unknown: str | None = None

    def load(self, overflow: str = "truncate", **limits: int) -> OffsetTokenizer:
        return OffsetTokenizer("student", SideConfig(tokenizer=str(self.folder), **limits), overflow)


MAKES: dict[str, tuple[Callable[[], Tokenizer], str | None, Callable[[str], str], bool, str | None]] = {
    "byte-level": (byte_level, "<|endoftext|>", str, True, None),
    "byte-level-nfc": (
        lambda: byte_level(normalizers.NFC()),
        "<|endoftext|>",
        lambda text: unicodedata.normalize("NFC", text),
        True,
        None,
    ),
    "byte-level-prefix-space": (lambda: byte_level(prefix_space=True), "</s>", str, True, None),
    "metaspace": (lambda: sentencepiece(prepends=False), "</s>", str, True, "<unk>"),
    "prepend": (lambda: sentencepiece(prepends=True), "</s>", str, True, "<unk>"),
    "unigram": (
        lambda: unigram(words_first=False),
        "</s>",
        lambda text: unicodedata.normalize("NFKC", text),
        True,
        "<unk>",
    ),
    "unigram-words": (
        lambda: unigram(words_first=True),
        "</s>",
        as_t5_reads,
        False,
        "<unk>",
    ),
    "word-piece": (word_piece, "[SEP]", as_bert_reads, False, "[UNK]"),
}


@pytest.fixture(scope="session", params=MAKES)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    build, eos, fold, faithful, unknown = MAKES[request.param]
    backend = build()
    folder = tmp_path_factory.mktemp(request.param)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, unk_token=unknown).save_pretrained(folder)
    return Make(folder, backend, fold, faithful, unknown)


@pytest.fixture(scope="session")
def tokenizer(make: Make) -> OffsetTokenizer:
    return make.load()


@pytest.fixture(scope="session")
def decoder(tokenizer: OffsetTokenizer) -> Decoder:
    return Decoder(tokenizer)


SEGMENTER = Segmenter(SegmentConfig())


def rows(texts: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[tuple[str, int]]:
    """A text and where its response begins; 0, plain text, more often than chance has it."""
    return texts.flatmap(lambda text: st.tuples(st.just(text), st.just(0) | st.integers(0, len(text))))


def visible(text: str) -> str:
    return "".join(text.replace("▁", " ").split())


def encode(make: Make, tokenizer: OffsetTokenizer, row: tuple[str, int]) -> Encoding | None:
    """The row's encoding; None where there is rightly none: a part of the row that no token can stand for."""
    text, start = row
    [result] = tokenizer.encode(prompted([text], [start]))
    if isinstance(result, Encoding):
        return result
    prompt, response = text[:start], text[start:]
    if result == Reason("student: response has no tokens"):
        assert not visible(make.fold(response))
        return None
    assert result == Reason("student: offsets could not be verified")
    assert any(part.strip() and not visible(make.fold(part)) for part in (prompt, response))
    assert not make.faithful
    return None


def own(encoding: Encoding) -> np.ndarray:
    """Offsets of the tokens that spell text."""
    return encoding.offsets[encoding.offsets[:, 0] >= 0]


@SETTINGS
@given(row=rows(ANY_TEXTS))
def test_offsets_are_monotone_and_cover_all_that_the_tokenizer_sees(make, tokenizer, row):
    encoding = encode(make, tokenizer, row)
    if encoding is None:
        return
    text, _ = row
    offsets = own(encoding)
    assert (offsets[:, 0] <= offsets[:, 1]).all()
    assert (offsets[:, 1] <= len(text)).all()
    assert (np.diff(offsets, axis=0) >= 0).all()
    held = {i for first, last in offsets.tolist() for i in range(first, last)}
    assert not any(visible(make.fold(text[i])) for i in range(len(text)) if i not in held)
    for first, last in offsets.tolist():
        assert first == last or text[first:last].isspace() or not text[first].isspace()


@SETTINGS
@given(row=rows())
def test_each_range_holds_what_its_tokens_spell(make, tokenizer, row):
    """Tokens that share a character are decoded together, by the library's own decoder."""
    encoding = encode(make, tokenizer, row)
    if encoding is None:
        return
    text, _ = row
    real = encoding.offsets[:, 0] >= 0
    groups: list[tuple[list[int], int, int]] = []
    for index, (first, last) in zip(encoding.input_ids[real].tolist(), own(encoding).tolist(), strict=True):
        if groups and first < groups[-1][2]:
            ids, start, end = groups[-1]
            groups[-1] = ([*ids, index], start, max(end, last))
        else:
            groups.append(([index], first, last))
    for ids, first, last in groups:
        names = [make.backend.id_to_token(index) for index in ids]
        if make.unknown in names:
            assert first < last
            continue
        if len(ids) == 1 and text[first:last] == names[0]:
            continue  # an added token, word for word
        said = make.backend.decode(ids, skip_special_tokens=False)
        if names[0].startswith("##"):  # which the decoder takes for the beginning of a word
            said = "".join(name.removeprefix("##") for name in names)
        assert visible(said) == visible(make.fold(text[first:last])), (names, text[first:last])
        if visible(said):  # and nothing that is dropped at its edges, but for what combines with the last character
            assert visible(make.fold(text[first]))
            end = text[last - 1]
            combines = (
                unicodedata.category(end)[0] == "M" or end in "\u200c\u200d" or "\U000e0020" <= end <= "\U000e007f"
            )
            assert visible(make.fold(end)) or combines


#: What some normaliser drops or writes as a space, though no Python function calls it one.
INVISIBLE = st.sampled_from(
    ["\u200b", "\ufeff", "\u00ad", "\u2060", "\x00", "\x07", "\u0301", "\u200b\u0301", "\ufffd"]
)


@SETTINGS
@given(
    words=st.lists(
        st.sampled_from(["The", "cat", "(Straße", "don't", "猫", "3.5", "cafe\u0301", "é"]), min_size=1, max_size=5
    ),
    between=st.lists(st.lists(INVISIBLE, max_size=3), min_size=6, max_size=6),
    start=st.integers(0, 5),
)
def test_what_a_normaliser_drops_takes_no_word_away(make, tokenizer, words, between, start):
    """Characters that stand alone between blanks, or before and behind all words: each word keeps its tokens."""

    def text_of(between):
        gaps = [" ".join(["", *gap, ""]) for gap in between]
        parts, spans, at = [], [], len(gaps[0])
        for word, gap in zip(words, gaps[1:], strict=False):
            parts.append(word + gap)
            spans.append((at, at + len(word)))
            at += len(word) + len(gap)
        return gaps[0] + "".join(parts), np.array(spans, dtype=np.int32)

    texts, spans = zip(text_of([[]] * 6), text_of(between), strict=True)
    starts = [int(part[start, 0]) if start < len(part) else 0 for part in spans]
    plain, strewn = tokenizer.encode(prompted(texts, starts))
    if isinstance(plain, Reason) or isinstance(strewn, Reason):
        assert not make.faithful
        return
    [(_, reasons), (units, strewn_reasons)] = (
        token_spans(part, encoding.offsets, text)
        for part, encoding, text in zip(spans, (plain, strewn), texts, strict=True)
    )
    assert strewn_reasons.tolist() == reasons.tolist()
    own = [
        [[texts[k][a:b] for a, b in encoding.offsets[first:last].tolist()] for first, last in found.tolist()]
        for k, (encoding, found) in enumerate(
            [(plain, token_spans(spans[0], plain.offsets, texts[0])[0]), (strewn, units)]
        )
    ]
    assert own[0] == own[1]


@SETTINGS
@given(row=rows(), data=st.data())
def test_decoding_finds_nothing_wrong_and_every_end_that_is(make, tokenizer, decoder, row, data):
    """A second way to the same answer, which shares no step with the first; it notices any end that was moved."""
    encoding = encode(make, tokenizer, row)
    if encoding is None:
        return
    text, start = row
    words = SEGMENTER.segment([text], [borders(start)])[0].word_spans
    spans, _ = token_spans(words, encoding.offsets, text)
    [rendered] = prompted([text], [start])
    assert decoder.problem(rendered, encoding, {"words": (words, spans)}) is None
    shows = [bool(visible(make.fold(c))) for c in text]
    known = make.backend.token_to_id(make.unknown) if make.unknown else None
    places = [
        (i, end)
        for i, (a, b) in enumerate(encoding.offsets.tolist())
        for end in (0, 1)
        if 0 <= a < b and encoding.input_ids[i] != known and any(shows[a:b])
    ]
    if not places:
        return
    at, end = data.draw(st.sampled_from(places))
    wrong = encoding.offsets.copy()
    wrong[at, end] += data.draw(st.sampled_from([-1, 1]))
    if not 0 <= wrong[at, 0] <= wrong[at, 1] <= len(text):
        return
    moved = sorted({int(encoding.offsets[at, end]), int(wrong[at, end])})
    if shows[moved[0]] and shared(encoding, at) == shared(replace(encoding, offsets=wrong), at) == 1:
        assert decoder.problem(rendered, replace(encoding, offsets=wrong), {}) is not None


def shared(encoding: Encoding, at: int) -> int:
    """How many tokens hold some character of token `at`."""
    first, last = encoding.offsets[at].tolist()
    return sum(0 <= a < last and first < b for a, b in encoding.offsets.tolist())


@SETTINGS
@given(row=rows())
def test_a_token_boundary_falls_where_the_response_begins(make, tokenizer, row):
    encoding = encode(make, tokenizer, row)
    if encoding is None:
        return
    _, start = row
    prompt, response = encoding.offsets[: response_start(encoding)], encoding.offsets[response_start(encoding) :]
    assert (prompt[:, 1] <= start).all()
    assert (response[response[:, 0] >= 0][:, 0] >= start).all()
    assert response[0, 0] >= 0
    assert encoding.input_ids.dtype == encoding.offsets.dtype == np.int32


@SETTINGS
@given(row=rows())
def test_special_tokens_are_those_of_the_policy(make, tokenizer, row):
    encoding = encode(make, tokenizer, row)
    if encoding is None:
        return
    text, _ = row
    policy = tokenizer.identity()
    prefix, suffix = policy["prefix"], policy["suffix"]
    names = [make.backend.id_to_token(index) for index in encoding.input_ids.tolist()]
    special = encoding.offsets[:, 0] < 0
    visible_names = [
        name
        for name, added, (a, b) in zip(names, special, encoding.offsets.tolist(), strict=True)
        if not added and text[a:b].strip()
    ]
    opening = [] if visible_names[: len(prefix)] == prefix else prefix
    response_names = visible_names[-len(suffix) :]
    closing = (
        [] if response_names == suffix and text[encoding.offsets[response_start(encoding), 0] :].strip() else suffix
    )
    added = np.flatnonzero(special).tolist()
    assert names[: len(opening)] == opening
    assert added[: len(opening)] == list(range(len(opening)))
    assert [names[i] for i in added[len(opening) :]] == closing
    assert added[len(opening) :] == list(range(len(names) - len(closing), len(names)))


@SETTINGS
@given(row=rows(), before=st.sampled_from(["", " ", "\n"]), behind=st.sampled_from(["", " ", "\n", "\r\n\n"]))
def test_text_that_was_rendered_before_gets_no_second_bos_and_no_second_eos(make, tokenizer, row, before, behind):
    policy, (text, start) = tokenizer.identity(), row
    opening = before + "".join(policy["prefix"])
    rendered = opening + text + "".join(policy["suffix"]) + behind
    encoding = encode(make, tokenizer, (rendered, start and start + len(opening)))
    assert encoding is None or (encoding.offsets[:, 0] >= 0).all()


@SETTINGS
@given(row=rows(), limit=st.integers(2, 20), prompt_limit=st.none() | st.integers(1, 12))
def test_truncation_keeps_whole_characters_and_the_limits(make, tokenizer, row, limit, prompt_limit):
    whole = encode(make, tokenizer, row)
    if whole is None:
        return
    text, start = row
    cut_tokenizer = shortened(tokenizer, limit, prompt_limit, "truncate")
    [rendered] = prompted([text], [start])
    [cut] = cut_tokenizer.encode([rendered])
    prefix = opening(whole)
    real = whole.offsets[:, 0] >= 0
    full_prompt = [*zip(whole.input_ids[prefix : response_start(whole)], own_part(whole, prefix), strict=True)]
    full_response_ids = whole.input_ids[response_start(whole) :][real[response_start(whole) :]].tolist()
    full_offsets = whole.offsets[response_start(whole) :][: len(full_response_ids)]
    kept_prompt_most = len(full_prompt) if prompt_limit is None else min(prompt_limit, len(full_prompt))
    # up to the first place where the response may be cut
    uncut = 1
    while uncut < len(full_offsets) and full_offsets[uncut, 0] < full_offsets[uncut - 1, 1]:
        uncut += 1
    if isinstance(cut, Reason):  # only where not even that has room without any prompt
        assert cut == Reason("student: max_length leaves no room for the response")
        assert prefix + uncut > limit
        return
    assert prefix + uncut <= limit
    assert len(cut.input_ids) <= limit
    assert Decoder(cut_tokenizer).problem(rendered, cut, {}) is None
    prefix = opening(cut)  # another one if the row's own was cut away
    prompt_tokens = response_start(cut) - prefix
    assert prompt_tokens <= kept_prompt_most
    assert [pair[0] for pair in full_prompt[len(full_prompt) - prompt_tokens :]] == cut.input_ids[
        prefix : response_start(cut)
    ].tolist()
    if 0 < prompt_tokens < len(full_prompt):
        at = len(full_prompt) - prompt_tokens
        assert full_prompt[at - 1][1][1] <= full_prompt[at][1][0]
    kept = int((cut.offsets[response_start(cut) :, 0] >= 0).sum())
    assert kept >= 1
    assert full_response_ids[:kept] == cut.input_ids[response_start(cut) : response_start(cut) + kept].tolist()
    assert np.array_equal(full_offsets[:kept], cut.offsets[response_start(cut) : response_start(cut) + kept])
    if kept < len(full_response_ids):
        assert full_offsets[kept - 1, 1] <= full_offsets[kept, 0]
        assert len(cut.input_ids) == response_start(cut) + kept  # no eos after a cut response
    assert cut.truncated == (cut.input_ids.tolist() != whole.input_ids.tolist())
    [dropped] = shortened(tokenizer, limit, prompt_limit, "drop").encode(prompted([text], [start]))
    assert isinstance(dropped, Reason) == cut.truncated


def opening(encoding: Encoding) -> int:
    """How many tokens stand before a row's own."""
    return int(np.argmax(encoding.offsets[:, 0] >= 0))


def shortened(tokenizer: OffsetTokenizer, limit: int, prompt_limit: int | None, overflow: str) -> OffsetTokenizer:
    """The same tokenizer under limits, without loading it again."""
    twin = object.__new__(OffsetTokenizer)
    twin.__dict__ |= tokenizer.__dict__ | {"overflow": overflow}
    twin.config = tokenizer.config.model_copy(update={"max_length": limit, "max_prompt_length": prompt_limit})
    return twin


def own_part(encoding: Encoding, prefix: int) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in encoding.offsets[prefix : response_start(encoding)].tolist()]


@settings(SETTINGS, max_examples=15)
@given(batch=st.lists(rows(ANY_TEXTS), min_size=1, max_size=6))
def test_a_row_does_not_depend_on_its_batch(tokenizer, batch):
    together = tokenizer.encode(prompted([text for text, _ in batch], [start for _, start in batch]))
    for (text, start), found in zip(batch, together, strict=True):
        [alone] = tokenizer.encode(prompted([text], [start]))
        if isinstance(alone, Reason):
            assert found == alone
            continue
        assert np.array_equal(found.input_ids, alone.input_ids)
        assert np.array_equal(found.offsets, alone.offsets)
        assert response_start(found) == response_start(alone)


def test_an_unpaired_surrogate_costs_its_row_alone(tokenizer):
    bad, good = tokenizer.encode(prompted(["a\ud800b", "The cat"], [1, 3]))
    assert bad == Reason("student: text holds an unpaired surrogate")
    assert isinstance(good, Encoding)


def test_the_audit_accounts_for_every_token(make, tokenizer):
    texts = [text for text in CORPUS if make.fold(text)]
    tokenizer.audit(prompted(texts, [4] * len(texts)))
    fresh = make.load()
    encodings = fresh.encode(prompted(texts, [4] * len(texts)))
    counts = fresh.offset_counts
    assert counts["rows"] == len(texts)
    assert counts["rows_refused"] == 0
    assert counts["tokens"] == counts["exact"] + counts["repaired"] == sum(len(own(item)) for item in encodings)
