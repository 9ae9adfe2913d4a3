"""The default parser on documents: what has no tree gets none, what is too long is counted, nothing crashes."""

import numpy as np
import pytest

from pipeline.parse.benepar import NAME, BeneparParser, pieces, plain, split_points
from pipeline.read.segment import Segmenter
from pipeline.text import Sentence, Words
from schemas.config import ParserConfig, SegmentConfig


@pytest.fixture(scope="module")
def extract():
    parser = BeneparParser(ParserConfig(keep_trees=True, max_words=40))
    segmenter = Segmenter(SegmentConfig())

    def run(*texts):
        return parser.extract(segmenter.segment(list(texts), [()] * len(texts)))

    return run


def spelled(text, units, kind):
    return [text[start:end] for start, end in getattr(units, kind).tolist()]


def test_empty_text_has_nothing(extract):
    (units,) = extract("")
    assert (len(units.chunks), len(units.phrases), units.trees, dict(units.counts)) == (0, 0, (), {})


@pytest.mark.parametrize("text", ["...", "?!", "---", "( )", "🎉", "«»"])
def test_punctuation_alone_has_no_tree(extract, text):
    (units,) = extract(text)
    assert len(units.phrases) == 0
    assert units.trees == ("",)
    assert units.counts["sentences_punctuation"] == 1


@pytest.mark.parametrize("text", ["Yes", "Lisbon", "42", "Stop!"])
def test_one_word_has_a_tree_over_that_word(extract, text):
    (units,) = extract(text)
    (tree,) = units.trees
    assert tree.startswith("(TOP (")
    assert text.rstrip("!") in tree
    assert units.counts["sentences_parsed"] == 1


def test_the_worked_example(extract):
    text = "The small cat has been sleeping quietly on the old sofa."
    (units,) = extract(text)
    assert spelled(text, units, "chunks") == ["The small cat", "has been sleeping quietly", "the old sofa"]
    assert units.chunk_labels == ("NP", "VP", "NP")
    assert "has been sleeping quietly on the old sofa" in spelled(text, units, "phrases")


def test_code_has_words_but_no_phrases(extract):
    text = "Run this:\n```python\nfor item in the_list:\n    print(item)\n```\nIt prints every item."
    (units,) = extract(text)
    inside = range(text.index("```"), text.rindex("```"))
    assert not any(start in inside for start, _ in units.phrases.tolist())
    assert "every item" in spelled(text, units, "chunks")
    assert units.counts["sentences_code"] >= 2


def test_a_long_sentence_is_split_and_counted(extract):
    colours = ["red", "blue", "green", "white", "black"]
    things = ["house", "boat", "horse", "coat", "door", "flag"]
    text = "We saw " + ", ".join(f"the {colour} {thing}" for thing in things for colour in colours) + "."
    (units,) = extract(text)
    assert units.counts["sentences_split"] == 1
    assert units.counts["sentences_parsed"] > 3
    assert "the black flag" in spelled(text, units, "chunks")
    (tree,) = units.trees
    assert tree.count("flag)") == len(colours)


def test_words_beyond_the_model_are_left_unparsed_and_counted(extract):
    text = " ".join(["qzxjkvw" * 4] * 39) + "\n\nA cat sleeps."
    (units,) = extract(text)
    assert units.counts["sentences_too_long"] == 1
    assert units.counts["sentences_parsed"] == 1
    assert spelled(text, units, "phrases")


def test_an_address_is_never_too_long(extract):
    (units,) = extract("See https://example.org/" + "/".join(f"{n:x}zq" for n in range(300)) + ".")
    assert units.counts["sentences_too_long"] == 0
    assert units.chunk_labels == ("VP", "NP")


def test_units_of_a_document_do_not_depend_on_its_company(extract):
    texts = ["The dog barked at the old postman.", "Why did she leave?", "He wants to buy a new car, but can't."]
    together = extract(*texts)
    for text, units in zip(texts, together, strict=True):
        (alone,) = extract(text)
        assert alone.chunks.tolist() == units.chunks.tolist()
        assert alone.phrases.tolist() == units.phrases.tolist()
        assert alone.trees == units.trees


def a_sentence(words, spaces, names=()):
    spans = np.zeros((len(words), 2), dtype=np.int32)
    return Sentence(Words(tuple(words), tuple(spaces)), spans, names=frozenset(names))


def test_compatibility_forms_and_invisible_characters_are_undone_for_the_network_only():
    sentence = a_sentence(("Ｔｈｅ", "c\u200bat", "ﬁts", "\u200d", "naïve"), (True, True, True, False, False))
    assert plain(sentence).words == ("The", "cat", "fits", "\u200d", "naïve")
    assert plain(sentence).space_after == sentence.words.space_after
    ascii_only = a_sentence(("The", "cat"), (True, False))
    assert plain(ascii_only) == ascii_only.words


def test_the_network_reads_one_noun_for_all_names():
    sentence = a_sentence(("Solve", "$α = 2$", "at", "www.y.net"), (True, True, True, False), {1, 3})
    assert plain(sentence) == Words(("Solve", NAME, "at", NAME), sentence.words.space_after)


def test_names_stay_where_they_are_in_the_pieces_of_a_sentence():
    words = [f"w{i}" for i in range(50)]
    sentence = a_sentence(words, [True] * 50, {0, 7, 8, 19, 49})
    parts = pieces(sentence, 8)
    assert len(parts) > 5
    named = [part.words.words[name] for part in parts for name in sorted(part.names)]
    assert named == ["w0", "w7", "w8", "w19", "w49"]


def test_a_formula_is_a_noun_and_its_unit_spans_all_of_it(extract):
    text = "Solve $x^2 - 5x + 6 = 0$ for $x$."
    (units,) = extract(text)
    assert spelled(text, units, "chunks") == ["Solve", "$x^2 - 5x + 6 = 0$", "$x$"]
    assert units.chunk_labels == ("VP", "NP", "NP")


def test_without_marks_a_long_sentence_is_cut_before_a_conjunction():
    assert split_points(["w"] * 12 + ["and"] + ["w"] * 12, 16) == [12]
    assert split_points(["w"] * 40, 16) == [16, 32]
