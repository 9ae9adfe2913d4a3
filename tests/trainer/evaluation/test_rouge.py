"""ROUGE-L against a longest common subsequence written out here."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer

from trainer.evaluation.rouge import RougeL, Words

stemmer = PorterStemmer()


def tokens(text):
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return [stemmer.stem(word) if len(word) > 3 else word for word in words]


def plain(text, reference, tokens=tokens):
    a, b = tokens(text), tokens(reference)
    if not a or not b:
        return 0.0
    common = {(-1, -1): 0}
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            if left == right:
                common[i, j] = common.get((i - 1, j - 1), 0) + 1
            else:
                common[i, j] = max(common.get((i - 1, j), 0), common.get((i, j - 1), 0))
    longest = common[len(a) - 1, len(b) - 1]
    precision, recall = longest / len(a), longest / len(b)
    return 100 * 2 * precision * recall / (precision + recall) if longest else 0.0


WORDS = st.lists(
    st.sampled_from(["The", "cats", "cat,", "running", "runs!", "is", "easily", "2020", "é", "naïve", "ing", "-"]),
    max_size=14,
).map(" ".join)


@settings(max_examples=40)
@given(WORDS, WORDS)
def test_equals_the_plain_computation(text, reference):
    assert RougeL().score(text, [reference]) == pytest.approx(plain(text, reference), abs=1e-9)


@settings(max_examples=20)
@given(WORDS, st.lists(WORDS, min_size=2, max_size=4))
def test_takes_the_best_reference(text, references):
    assert RougeL().score(text, references) == pytest.approx(max(plain(text, each) for each in references), abs=1e-9)


def test_known_values():
    rouge = RougeL()
    assert rouge.score("police killed the gunman", ["police kill the gunman"]) == pytest.approx(100), "stemmed"
    assert rouge.score("police kill the gunman", ["the gunman police killed"]) == pytest.approx(50)
    assert rouge.score("", ["something"]) == 0
    assert rouge.score("same", ["other", "same"]) == pytest.approx(100)


SCRIPTS = (
    "CJK UNIFIED",
    "HIRAGANA LETTER",
    "KATAKANA LETTER",
    "KATAKANA-HIRAGANA PROLONGED",
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
)


def characters_or_words(text):
    """Tokens of any script by the names of their characters: `apart` when the last one was of a script without spaces."""
    pieces, apart, open_word = [], False, False
    for character in unicodedata.normalize("NFKC", text.casefold()):
        kind = unicodedata.category(character)[0]
        unspaced = unicodedata.name(character, "").startswith(SCRIPTS)
        if kind == "M" and (apart or open_word):
            pieces[-1] += character
        elif kind not in "LMN":
            apart = open_word = False
        elif unspaced:
            pieces, apart, open_word = [*pieces, character], True, False
        elif open_word:
            pieces[-1] += character
        else:
            pieces, apart, open_word = [*pieces, character], False, True
    return pieces


#: The same word composed and decomposed, in both cases, and words of several scripts.
SEVERAL = (
    "Straße|STRASSE|naïve|nai\u0308ve|日本語|日本|こんにちは|サーバーab|"
    "ไทย|ภาษาไทย|ພາສາ|ខ្មែរ|មែន|မြန်မာ|हिन्दी|भाषा|العربية|한국어|１２|3|。|-| "
)
SPOKEN = st.lists(st.sampled_from(SEVERAL.split("|")), max_size=8).flatmap(
    lambda words: st.sampled_from(["", " "]).map(lambda between: between.join(words))
)


@settings(max_examples=60)
@given(SPOKEN, SPOKEN)
def test_multilingual_equals_the_plain_computation(text, reference):
    assert Words().tokenize(text) == characters_or_words(text)
    expected = plain(text, reference, characters_or_words)
    assert RougeL("multilingual").score(text, [reference]) == pytest.approx(expected, abs=1e-9)


def test_scripts_that_the_field_s_rule_drops():
    english, multilingual = RougeL(), RougeL("multilingual")
    for text, other, score in (
        ("今日は雨です", "今日は晴れです", 2 * (5 / 6) * (5 / 7) / (5 / 6 + 5 / 7)),
        ("Сегодня идёт дождь", "сегодня был дождь", 2 / 3),
        ("हिन्दी भाषा", "हिन्दी", 2 / 3),
    ):
        assert english.is_blank(text)
        assert english.score(text, [text]) == 0
        assert not multilingual.is_blank(text)
        assert multilingual.score(text, [other]) == pytest.approx(100 * score)
    assert multilingual.is_blank(" 。…!")
    assert multilingual.score("Cats", ["cats"]) == pytest.approx(100)
    assert multilingual.score("cats", ["cat"]) == 0, "not stemmed"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, Ça va!", ["don", "t", "stop", "ça", "va"]),
        ("Волга — река", ["волга", "река"]),
        ("我爱 Python3。", ["我", "爱", "python3"]),
        ("朝ごはん", ["朝", "ご", "は", "ん"]),
        ("मोर नाचते हैं।", ["मोर", "नाचते", "हैं"]),
        ("عاصمة المغرب؟", ["عاصمة", "المغرب"]),
        ("🎈 ---", []),
    ],
)
def test_words_of_all_scripts(text, words):
    assert Words().tokenize(text) == words


@settings(max_examples=40)
@given(st.text(), st.text(min_size=1))
def test_multilingual_rouge_takes_any_text(text, reference):
    expected = plain(text, reference, Words().tokenize)
    assert RougeL("multilingual").score(text, [reference]) == pytest.approx(expected, abs=1e-9)
