"""Chunks and phrases of sentences whose right answer is known."""

from collections import Counter

import numpy as np
import pytest
from nltk.tree import Tree

from pipeline.align.units import bracketed, document_units, is_punctuation, units_of
from pipeline.text import Constituents, Document, Sentence, Units, Words


def read(penn: str, text: str | None = None) -> tuple[str, Sentence, Constituents]:
    """A bracketed tree as a text (default: its words with one space between), its sentence and its constituents."""
    tree = Tree.fromstring(penn)
    spans: list[tuple[int, int]] = []
    labels: list[str] = []

    def walk(node: Tree, start: int) -> int:
        if isinstance(node[0], str):
            return start + 1
        place, end = len(spans), start
        spans.append((start, start))
        labels.append(node.label())
        for child in node:
            end = walk(child, end)
        spans[place] = (start, end)
        return end

    walk(tree, 0)
    words = tuple(tree.leaves())
    text = " ".join(words) if text is None else text
    places, at = [], 0
    for word in words:
        at = text.index(word, at)
        places.append((at, at + len(word)))
        at += len(word)
    follows = tuple(text[end : end + 1] == " " for _, end in places)
    sentence = Sentence(Words(words, follows), np.array(places, np.int32))
    tags = tuple(tag for _, tag in tree.pos())
    return text, sentence, Constituents(np.array(spans, np.int32).reshape(-1, 2), tuple(labels), tags)


def chunks(penn: str, text: str | None = None) -> list[str]:
    """`NP the cat`, `VP sleeps`, ..."""
    text, sentence, tree = read(penn, text)
    units = units_of(sentence, tree)
    return [f"{label} {text[a:b]}" for (a, b), label in zip(units.chunks, units.chunk_labels, strict=True)]


def phrases(penn: str, text: str | None = None) -> list[str]:
    text, sentence, tree = read(penn, text)
    units = units_of(sentence, tree)
    return [f"{label} {text[a:b]}" for (a, b), label in zip(units.phrases, units.phrase_labels, strict=True)]


CAT = """(S (NP (NP (DT The) (JJ small) (NN cat)) (SBAR (WHNP (WDT that)) (S (NP (PRP I)) (VP (VBD saw)))))
  (VP (VP (VBZ has) (VP (VBN been)
          (VP (VBG sleeping) (ADVP (RB quietly)) (PP (IN on) (NP (DT the) (JJ old) (NN sofa))))))
      (, ,) (CC and) (VP (VBZ wants) (S (VP (TO to) (VP (VB stay)))))) (. .))"""
CAT_TEXT = "The small cat that I saw has been sleeping quietly on the old sofa, and wants to stay."


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("(SBARQ (NP (WP What)) (SQ (VP (VBZ is) (NP (DT the) (NN capital)))) (. ?))", ["NP the capital"]),
        ("(SBARQ (WHNP (WP Who)) (SQ (VBZ is) (NP (PRP he))) (. ?))", ["NP he"]),
        ("(SBARQ (WHNP (WP Who)) (SQ (VP (VBZ is) (VP (VBG coming)))) (. ?))", ["VP is coming"]),
        ("(SBARQ (WHNP (WP What)) (SQ (VP (VBD was) (ADJP (JJ red)))) (. ?))", ["VP was"]),
        ("(SBARQ (NP (WP Who)) (SQ (VP (VBD saw) (NP (DT the) (NN cat)))) (. ?))", ["VP saw", "NP the cat"]),
        ("(S (NP (PRP It)) (VP (VBZ is) (NP (DT the) (NN capital))) (. .))", ["NP It", "VP is", "NP the capital"]),
    ],
)
def test_be_before_what_is_asked_for_is_in_no_unit(tree: str, expected: list[str]) -> None:
    """Wherever a treebank has it: in a VP of the question, or beside none."""
    assert chunks(tree) == expected
    assert sum(phrase.startswith("VP") for phrase in phrases(tree)) == (
        tree.count("(VP ") if any(unit.startswith("VP") for unit in expected) else 0
    )


def test_the_spaces_of_a_formula_are_in_no_tree() -> None:
    sentence = Words(("Solve", "$x (y) = 1$"), (True, False))
    tree = Constituents(np.array([[0, 2], [1, 2]], np.int32), ("VP", "NP"), ("VB", "NN"))
    assert bracketed(sentence.words, tree) == "(TOP (VP (VB Solve) (NP (NN $x-LRB-y-RRB-=1$))))"


def test_the_worked_example_of_the_design() -> None:
    assert chunks(CAT, CAT_TEXT) == [
        "NP The small cat",
        "NP I",
        "VP saw",
        "VP has been sleeping quietly",
        "NP the old sofa",
        "VP wants",
        "VP to stay",
    ]
    assert phrases(CAT, CAT_TEXT) == [
        "NP The small cat that I saw",
        "NP The small cat",
        "NP I",
        "VP saw",
        "VP has been sleeping quietly on the old sofa, and wants to stay",
        "VP has been sleeping quietly on the old sofa",
        "VP been sleeping quietly on the old sofa",
        "VP sleeping quietly on the old sofa",
        "NP the old sofa",
        "VP wants to stay",
        "VP to stay",
        "VP stay",
    ]


CASES = {
    "modal and negation": (
        "(S (NP (PRP You)) (VP (MD should) (RB not) (VP (VB have) (VP (VBN gone)))))",
        ["NP You", "VP should not have gone"],
    ),
    "passive with an adverb inside": (
        "(S (NP (PRP It)) (VP (VBD was) (ADVP (RB soon)) (VP (VBN found) (PP (IN by) (NP (NNS boys))))))",
        ["NP It", "VP was soon found", "NP boys"],
    ),
    "infinitive in a clause of its own": (
        "(S (NP (PRP I)) (VP (VBP want) (S (NP (PRP you)) (VP (TO to) (VP (VB leave))))))",
        ["NP I", "VP want", "NP you", "VP to leave"],
    ),
    "gerund as a clause": (
        "(S (NP (PRP She)) (VP (VBZ likes) (S (VP (VBG reading) (NP (NNS books))))))",
        ["NP She", "VP likes", "VP reading", "NP books"],
    ),
    "copula with an adjective": (
        "(S (NP (PRP He)) (VP (VBZ is) (ADJP (RB very) (JJ happy))))",
        ["NP He", "VP is"],
    ),
    "copula with a noun phrase": (
        "(S (NP (PRP He)) (VP (VBZ is) (NP (DT a) (NN doctor))))",
        ["NP He", "VP is", "NP a doctor"],
    ),
    "particle beside the verb": (
        "(S (VP (VB Pick) (PRT (RP up)) (NP (DT the) (NN pen))))",
        ["VP Pick up", "NP the pen"],
    ),
    "particle after the object": (
        "(S (VP (VB Pick) (NP (DT the) (NN pen)) (PRT (RP up))))",
        ["VP Pick", "NP the pen"],
    ),
    "adverb before the verb": (
        "(S (NP (PRP We)) (VP (ADVP (RB gladly)) (VBP accept)))",
        ["NP We", "VP gladly accept"],
    ),
    "auxiliary outside the verb phrase": (
        "(SQ (VBZ Does) (NP (PRP he)) (VP (VB sleep) (ADVP (RB well))) (. ?))",
        ["NP he", "VP sleep well"],
    ),
    "noun phrase inside an adverb phrase": (
        "(S (NP (PRP He)) (VP (VBD left) (ADVP (NP (CD two) (NNS days)) (RB ago))))",
        ["NP He", "VP left", "NP two days"],
    ),
    "coordination under an auxiliary": (
        "(S (NP (PRP I)) (VP (MD will) (VP (VP (VB go)) (CC and) (VP (VB come) (ADVP (RB back))))))",
        ["NP I", "VP will", "VP go", "VP come back"],
    ),
    "words of a coordination": (
        "(VP (CC either) (VP (VBG singing)) (, ,) (RB not) (VP (VBG dancing)) (CC or) (VP (VBG resting)))",
        ["VP singing", "VP dancing", "VP resting"],
    ),
    "words of a coordination under an auxiliary": (
        "(VP (MD will) (VP (RB not) (VP (VB go)) (CC but) (VP (VB come))))",
        ["VP will", "VP go", "VP come"],
    ),
    "word after a coordination": (
        "(VP (VP (VP (VB go)) (CC and) (VP (VB come))) (RB too))",
        ["VP go", "VP come"],
    ),
    "verb phrase joined to something else": (
        "(VP (VP (VBD left)) (, ,) (CC and) (S (NP (DT that)) (VP (VBZ is) (NP (PRP it)))))",
        ["VP left", "NP that", "VP is", "NP it"],
    ),
    "phrase before the verb": (
        "(S (NP (PRP He)) (VP (PP (IN in) (NP (CD 1799))) (VBD entered) (NP (NN school))))",
        ["NP He", "NP 1799", "VP entered", "NP school"],
    ),
    "phrase inside the chain": (
        "(S (NP (PRP It)) (VP (MD may) (PP (IN in) (NP (DT the) (NN end))) (VP (VB fail))))",
        ["NP It", "VP may", "NP the end"],
    ),
    "possessive": (
        "(NP (NP (NNP John) (POS 's)) (JJ new) (NN book))",
        ["NP John 's"],
    ),
    "quantity and nominal parts are no noun phrases": (
        "(NP (QP (RB about) (CD ten)) (NX (NN cat)) (NNS lovers))",
        ["NP about ten cat lovers"],
    ),
    "verb group inside a base noun phrase": (
        "(NP (DT the) (NN wish) (S (VP (TO to) (VP (VB stay)))))",
        ["NP the wish to stay"],
    ),
    "only an adverb": ("(VP (ADVP (RB there)) (PP (IN in) (NP (NNP Rome))))", ["NP Rome"]),
    "unary chains": ("(S (NP (NP (NP (PRP They)))) (VP (VP (VBP run))))", ["NP They", "VP run"]),
}


@pytest.mark.parametrize("case", CASES)
def test_chunks(case: str) -> None:
    penn, expected = CASES[case]
    assert chunks(penn) == expected


def test_contractions_keep_their_characters() -> None:
    penn = "(S (NP (PRP We)) (VP (VBP do) (RB n't) (VP (VB know))) (. .))"
    assert chunks(penn, "We don't know.") == ["NP We", "VP don't know"]


def test_equal_spans_stay_apart_only_under_different_labels() -> None:
    assert phrases("(VP (NP (NP (S (NP (NN rain))))))") == ["VP rain", "NP rain"]


def test_edges_hold_no_punctuation() -> None:
    penn = "(NP (`` “) (NP (DT The) (NN end)) (, ,) (NP (-LRB- «) (NN fin) (-RRB- »)) ('' ”) (. .))"
    assert chunks(penn) == ["NP The end", "NP fin"]
    assert phrases(penn) == ["NP The end , « fin", "NP The end", "NP fin"]


def test_units_of_punctuation_are_dropped_and_counted() -> None:
    _, sentence, tree = read("(NP (NP (: --)) (PRN (NP (NN tea)) (NP (. !) (. !))) (VP (SYM *)))")
    units = units_of(sentence, tree)
    assert len(units.chunks) == 1
    assert units.counts == {"chunks_punctuation": 2, "phrases_punctuation": 3}


@pytest.mark.parametrize(
    "word", [".", "...", "“", "--", "—", "«", "、", "*", "`", "|", "؟", "\u0301", "\u200b", "‼\ufe0f"]
)
def test_punctuation(word: str) -> None:
    assert is_punctuation(word)


@pytest.mark.parametrize(
    "word", ["a", "5", "%", "$", "§", "&", "'s", "n't", ":)x", "😀", "=", "猫", "U.S.", "❤\ufe0f", "e\u0301"]
)
def test_words(word: str) -> None:
    assert not is_punctuation(word)


def test_nothing_to_find() -> None:
    words = Words(("Oh", "!"), (False, False))
    sentence = Sentence(words, np.array([[0, 2], [2, 3]], np.int32))
    tree = Constituents(np.empty((0, 2), np.int32), ())
    units = units_of(sentence, tree)
    assert units.chunks.shape == units.phrases.shape == (0, 2)
    assert bracketed(words.words, tree) == "(TOP (XX Oh) (XX !))"


def moved(sentence: Sentence, by: int) -> Sentence:
    return Sentence(sentence.words, sentence.spans + np.int32(by), sentence.parse)


def part(sentence: Sentence, a: int, b: int) -> Sentence:
    return Sentence(Words(sentence.words.words[a:b], sentence.words.space_after[a:b]), sentence.spans[a:b])


def found(units: Units, text: str) -> tuple[list[str], list[str]]:
    return [text[a:b] for a, b in units.chunks], [text[a:b] for a, b in units.phrases]


def test_a_document_joins_its_sentences_and_their_pieces() -> None:
    _, first, first_tree = read("(S (NP (NNS Cats)) (VP (VBP sleep)) (. .))")
    _, whole, _ = read("(X (NNS Dogs) (VBP bark) (: ;) (NN rain) (-LRB- -LRB-) (VBZ falls) (. .))")
    _, _, left = read("(S (NP (NNS Dogs)) (VP (VBP bark)) (: ;))")
    _, _, right = read("(S (NP (NN rain)) (-LRB- -LRB-) (VP (VBZ falls)) (. .))")
    text = "Cats sleep . x = 1 Dogs bark ; rain -LRB- falls ."
    code = Sentence(
        Words(("x", "=", "1"), (True, True, True)), np.array([[13, 14], [15, 16], [17, 18]], np.int32), False
    )
    whole = moved(whole, 19)
    document = Document(
        text,
        (first, code, whole),
        np.array([[0, 12], [13, 18], [19, 49]], np.int32),
        np.empty((0, 2), np.int32),
    )
    trees = {2: [(part(whole, 0, 3), left), (part(whole, 3, 7), right)], 0: [(first, first_tree)]}
    counts = Counter(sentences_parsed=3)
    units = document_units(document, trees, counts, keep_trees=True)
    assert found(units, text) == (["Cats", "sleep", "Dogs", "bark", "rain", "falls"],) * 2
    assert units.trees == (
        "(TOP (S (NP (NNS Cats)) (VP (VBP sleep)) (. .)))",
        "",
        "(TOP (S (NP (NNS Dogs)) (VP (VBP bark)) (: ;)) (S (NP (NN rain)) (-LRB- -LRB-) (VP (VBZ falls)) (. .)))",
    )
    assert units.counts == counts == {"sentences_parsed": 3}
    only_right = document_units(document, {2: trees[2][1:]}, counts, keep_trees=True)
    assert found(only_right, text)[0] == ["rain", "falls"]
    assert only_right.trees is not None
    assert only_right.trees[2].startswith("(TOP (XX Dogs) (XX bark) (XX ;) (S (NP")
    assert document_units(document, {}, counts, keep_trees=False).trees is None


@pytest.mark.parametrize(("tag", "chunks"), [("WP", ["wrote", "the poem"]), ("PRP", ["They", "wrote", "the poem"])])
def test_a_question_pronoun_alone_is_no_noun_phrase(tag, chunks):
    words = ("They", "wrote", "the", "poem")
    text = "They wrote the poem"
    spans = np.array([(0, 4), (5, 10), (11, 14), (15, 19)], dtype=np.int32)
    tree = Constituents(
        np.array([(0, 4), (0, 1), (1, 4), (2, 4)], dtype=np.int32), ("S", "NP", "VP", "NP"), (tag, "VBD", "DT", "NN")
    )
    units = units_of(Sentence(Words(words, (True, True, True, False)), spans), tree)
    assert [text[a:b] for a, b in units.chunks] == chunks
