"""`mta-prep eval-parser`: figures that hang together, both ways of reading trees, errors for people."""

import json
from collections import Counter

import pytest
from nltk.tree import Tree

from pipeline.parse.engine import Engine
from pipeline.parse.evaluation import LENGTH_NAMES
from pipeline.parse.treebank import read_trees, words_of

ONE_A_LINE = """\
(ROOT (S (NP-SBJ (DT The) (JJ old) (NN farmer)) (VP (VBZ sees) (NP (DT a) (JJ small) (NN bird))) (. .)))
(ROOT (S (NP-SBJ-1 (PRP She)) (VP (VBD was) (VP (VBN seen) (NP (-NONE- *-1)) (PP (IN by) (NP-LGS (NNS friends))))) (. .)))
(ROOT (S (NP-SBJ (NNS Dogs)) (VP (VBP bark) (ADVP (RB loudly)) (PP-TMP (IN at) (NP (NN night)))) (. .)))
"""
OVER_LINES = """\
(ROOT
  (S (NP-SBJ (DT The) (NML (NN mouse) (NN gene)) (NNS lists))
     (VP (VBP are)
         (ADJP-PRD (JJ long)))
     (. .)))
( (S (NP-SBJ (-NONE- *PRO*)) (VP (VB Open) (NP (DT the) (JJ green) (NN door)) (, ,) (INTJ (UH please))) (. !)) )
"""
FIGURES = ("matched", "gold", "predicted", "sentences")


@pytest.fixture
def files(tmp_path):
    """Two files of trees in one folder."""
    for name, trees in (("first.ptb", ONE_A_LINE), ("second.ptb", OVER_LINES)):
        (tmp_path / name).write_text(trees, encoding="utf-8")
    return tmp_path


def run(command, *arguments):
    code, out, err = command("eval-parser", *arguments, "--threads", 1)
    assert code == 0, err
    return out


def test_json_is_one_object_whose_figures_hang_together(command, files):
    found = json.loads(run(command, files, "--raw", "--json"))
    assert [name.rpartition("/")[2] for name in found["files"]] == ["first.ptb", "second.ptb"]
    assert found["parser"]["name"] == "embedded"
    for way in (found["gold_words"], found["raw_text"]):
        assert way["sentences"] == way["counts"]["trees"] == 5
        assert way["sentences_per_s"] > 0
        assert set(way["by_length"]) <= set(LENGTH_NAMES)
        for parts in (way["by_file"], way["by_length"].values()):
            assert sum((Counter({f: part[f] for f in FIGURES}) for part in parts), Counter()) == {
                f: way[f] for f in FIGURES
            }
        assert way["f1"] == pytest.approx(200 * way["matched"] / (way["gold"] + way["predicted"]), abs=0.006)
    # phrases by hand, in the files' order; traces and NML are no phrases
    assert [part["gold"] for part in found["gold_words"]["by_file"]] == [4 + 6 + 6, 4 + 4]


def test_raw_text_whose_sentences_and_words_are_found_scores_as_gold_words(command, files):
    found = json.loads(run(command, files, "--raw", "--json"))
    counts = found["raw_text"]["counts"]
    assert (counts["documents"], counts["sentences_found"], counts["sentences_alike"]) == (2, 5, 5)
    same = ("f1", "np_f1", "vp_f1", "exact", *FIGURES)
    assert [found["raw_text"][figure] for figure in same] == [found["gold_words"][figure] for figure in same]


def test_raw_text_counts_what_segmentation_costs(command, tmp_path):
    (tmp_path / "a.ptb").write_text("(NP (NN history))\n" * 2 + ONE_A_LINE, encoding="utf-8")
    found = json.loads(run(command, tmp_path / "a.ptb", "--raw", "--json"))
    assert found["raw_text"]["counts"]["sentences_alike"] < 5
    assert found["raw_text"]["f1"] < found["gold_words"]["f1"]


def test_a_parser_agrees_with_its_own_trees(command, files, embedded_parser):
    trees = [tree for name in ("first.ptb", "second.ptb") for tree in read_trees(files / name)]
    parsed = Engine(embedded_parser.network).constituents([words_of(tree) for tree in trees])
    own = files / "own.ptb"
    with own.open("w", encoding="utf-8") as out:
        for tree, found in zip(trees, parsed, strict=True):
            leaves = [f"({tag} {word})" for word, tag in tree.tree.pos()]
            for (start, end), label in reversed(list(zip(found.spans.tolist(), found.labels, strict=True))):
                leaves[start], leaves[end - 1] = (
                    (f"({label} {leaves[start]})",) * 2
                    if end - start == 1
                    else (f"({label} {leaves[start]}", f"{leaves[end - 1]})")
                )
            out.write(str(Tree.fromstring(" ".join(leaves))) + "\n")  # over several lines
    found = json.loads(run(command, own, "--json"))["gold_words"]
    assert (found["f1"], found["exact"]) == (100.0, 100.0)


def test_the_table_has_a_row_a_file_and_a_length(command, files):
    out = run(command, files / "first.ptb", files / "second.ptb", "--raw")
    assert out.count("first.ptb") == out.count("second.ptb") == 2
    assert out.count("1-10 words") == 2
    assert out.count("sentences/s") == 2
    assert "2 documents of up to 10 sentences; 5 sentences found, 5 of 5 exactly." in out
    alone = run(command, files / "first.ptb")
    assert "first.ptb" not in alone
    assert "raw text" not in alone


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no tree in it"),
        (b"(NP (-NONE- *))\n", "no tree in it"),
        (b"(NP (NN a))\n(NP (NN b)\n", "line 2: the tree that begins here is never closed"),
        (b"(NP (NN a)))\n", "line 1: a closing bracket too many"),
        (b"just some words\n", "line 1: not a bracketed tree"),
        (b"(NP (NN caf\xe9))\n", "not UTF-8 text (byte 11)"),
    ],
)
def test_files_that_hold_no_trees_are_named(command, tmp_path, content, told):
    path = tmp_path / "bad.ptb"
    path.write_bytes(content)
    code, out, err = command("eval-parser", path)
    assert (code, out) == (3, "")
    assert "bad.ptb" in err
    assert told in " ".join(err.split())
    assert "Traceback" not in err


def test_missing_files_and_models_are_named(command, files, tmp_path):
    for arguments in (["nowhere.ptb"], [files / "first.ptb", "--parser-model", "nowhere"]):
        code, out, err = command("eval-parser", *arguments)
        assert (code, out) == (3, "")
        assert "nowhere" in err
        assert "Traceback" not in err
    (tmp_path / "empty").mkdir()
    assert command("eval-parser", tmp_path / "empty")[0] == 3
