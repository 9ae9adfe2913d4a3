"""The default parser on documents: what has no tree gets none, what is too long is counted, nothing crashes."""

import pytest

from pipeline.parse.benepar import BeneparParser, plain, split_points
from pipeline.read.segment import Segmenter
from pipeline.text import Words
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


def test_a_word_beyond_the_model_is_left_unparsed_and_counted(extract):
    text = "x" * 10 + "-".join("q" * 3 for _ in range(400)) + " is long. A cat sleeps."
    units = extract("https://example.org/" + "/".join(f"{n:x}zq" for n in range(300)) + "\n\nA cat sleeps.", text)
    assert units[0].counts["sentences_too_long"] == 1
    assert units[0].counts["sentences_parsed"] == 1
    assert sum(unit.counts["sentences_parsed"] for unit in units) >= 2


def test_units_of_a_document_do_not_depend_on_its_company(extract):
    texts = ["The dog barked at the old postman.", "Why did she leave?", "He wants to buy a new car, but can't."]
    together = extract(*texts)
    for text, units in zip(texts, together, strict=True):
        (alone,) = extract(text)
        assert alone.chunks.tolist() == units.chunks.tolist()
        assert alone.phrases.tolist() == units.phrases.tolist()
        assert alone.trees == units.trees


def test_compatibility_forms_and_invisible_characters_are_undone_for_the_network_only():
    words = Words(("Ｔｈｅ", "c\u200bat", "ﬁts", "\u200d", "naïve"), (True, True, True, False, False))
    assert plain(words).words == ("The", "cat", "fits", "\u200d", "naïve")
    assert plain(words).space_after == words.space_after
    ascii_only = Words(("The", "cat"), (True, False))
    assert plain(ascii_only) is ascii_only


def test_without_marks_a_long_sentence_is_cut_before_a_conjunction():
    assert split_points(["w"] * 12 + ["and"] + ["w"] * 12, 16) == [12]
    assert split_points(["w"] * 40, 16) == [16, 32]
