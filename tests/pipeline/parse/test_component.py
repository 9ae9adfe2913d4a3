"""`mta_benepar` in spaCy: benepar's trees and attributes, batches across documents, errors, storage."""

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin

from pipeline.parse import model
from pipeline.parse.component import SPACE_TAG, sentences_of
from pipeline.parse.places import EMBEDDED
from schemas import embedded
from schemas.errors import StateError, UsageError

TEXT = "The small cat has been sleeping quietly on the old sofa."


def pipeline_with(factory="mta_benepar", **config):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe(factory, config=config)
    return nlp


@pytest.fixture(scope="module")
def nlp():
    return pipeline_with()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    model.export_for_benepar(EMBEDDED, folder)
    return str(folder)


@pytest.fixture(scope="module")
def texts():
    """Responses of the embedded sample that benepar's own component can take.

    It takes white space for words, so each is put on one line, and stops at a word without subwords, so emoji of several
    characters (which spaCy cuts apart) are left out.
    """
    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines()[::12]
    outputs = [" ".join(json.loads(line)["output"].split()) for line in lines]
    return [text for text in outputs if not {"\u200d", "\ufe0f"} & set(text)]


def nodes_of(doc):
    """All that the extension attributes say of every node, token and sentence."""
    nodes = [node for sent in doc.sents for node in sent._.constituents]
    return (
        [sent._.parse_string for sent in doc.sents],
        [(node.start, node.end, node._.labels, node._.parse_string) for node in nodes],
        [[(child.start, child.end) for child in node._.children] for node in nodes],
        [(up.start, up.end) if (up := node._.parent) else None for node in nodes],
        [(token._.labels, token._.parse_string, token._.parent and token._.parent.start) for token in doc],
        [token.tag_ for token in doc],
    )


@pytest.mark.parametrize("disable_tagger", [False, True])
def test_every_attribute_equals_that_of_benepars_own_component(nlp, exported, texts, disable_tagger):
    stock = pipeline_with("benepar", model=exported, disable_tagger=disable_tagger)
    ours = pipeline_with(disable_tagger=True) if disable_tagger else nlp
    some = texts[::4] if disable_tagger else texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-struct's own
        expected = [nodes_of(stock(text)) for text in some]
    found = [nodes_of(doc) for doc in ours.pipe(some)]
    assert sum(len(trees) for trees, *_ in expected) > (20 if disable_tagger else 80)  # sentences
    assert found == expected


def test_both_components_read_the_same_release_folder(nlp, exported, texts):
    (other,) = pipeline_with(model=exported).pipe(texts[:1])
    assert nodes_of(other) == nodes_of(nlp(texts[0]))


def test_units_of_the_pipeline_are_span_groups(nlp):
    doc = nlp(f"{TEXT} Stop!")
    assert [(span.text, span.label_) for span in doc.spans["chunks"]] == [
        ("The small cat", "NP"),
        ("has been sleeping quietly", "VP"),
        ("the old sofa", "NP"),
        ("Stop", "VP"),
    ]
    assert "has been sleeping quietly on the old sofa" in [span.text for span in doc.spans["phrases"]]


FRAGMENTS = [
    "The dog barks.",
    " ",
    "  ",
    "\n",
    "\n\n",
    "Yes",
    "?",
    "(",
    '"',
    "it's",
    "42%",
    "日本語。",
    "🙂",
    "\u200b",
    "a\tb",
    ".",
]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join))
def test_trees_cover_every_token_once_and_agree_with_themselves(nlp, text):
    doc = nlp(text)
    for sent in doc.sents:
        nodes = list(sent._.constituents)
        assert (nodes[0].start, nodes[0].end) == (sent.start, sent.end)
        assert sent._.parent is None
        for node in nodes:
            children = list(node._.children)
            assert len(node) == 1 or [token.i for child in children for token in child] == [token.i for token in node]
            assert len(children) != 1 or len(node) > 1
            assert all((up := child._.parent) and (up.start, up.end) == (node.start, node.end) for child in children)
    for token in doc:
        assert not token.is_space or token.tag_ == SPACE_TAG
        assert not token.is_space or token._.labels == () or len(token.sent) == 1
    assert all(not span[0].is_space and not span[-1].is_space for span in doc.spans["phrases"])


@pytest.mark.parametrize(
    ("text", "trees"),
    [
        ("", []),
        (" ", ["(_SP  )"]),
        ("\n \n", ["(_SP \n \n)"]),
        ("Yes", ["(FRAG (UH Yes))"]),
        ("\nYes", ["(FRAG (_SP \n) (UH Yes))"]),
    ],
)
def test_texts_of_next_to_nothing(nlp, text, trees):
    assert [sent._.parse_string for sent in nlp(text).sents] == trees


def test_white_space_does_not_change_the_tree(nlp):
    (plain,) = nlp("The dog wants to stay.").sents
    (spaced,) = nlp("The dog\n wants  to\tstay.").sents
    assert [node._.labels for node in spaced._.constituents if not node.text.isspace()] == [
        node._.labels for node in plain._.constituents
    ]


def test_documents_of_a_batch_are_parsed_together_and_come_in_order(nlp, monkeypatch):
    engine = nlp.get_pipe("mta_benepar").engine
    calls = []
    real = engine.constituents

    def recorded(sentences):
        calls.append(len(sentences))
        return real(sentences)

    monkeypatch.setattr(engine, "constituents", recorded)
    texts = [f"Dog {number} barks. It is old." for number in range(7)]
    docs = list(nlp.pipe(((text, number) for number, text in enumerate(texts)), as_tuples=True, batch_size=4))
    assert calls == [8, 6]
    assert [number for _, number in docs] == list(range(7))
    assert [doc.text for doc, _ in docs] == texts
    assert [nodes_of(doc) for doc, _ in docs] == [nodes_of(nlp(text)) for text in texts]


def test_without_sentence_boundaries_one_error_says_what_to_add(nlp):
    doc = nlp.make_doc("The dog barks. It is old.")
    with pytest.raises(UsageError, match="sentencizer"):
        nlp.get_pipe("mta_benepar")(doc)
    with pytest.raises(UsageError, match="sentencizer"):
        sentences_of(doc)


def handled(nlp, docs, batch_size):
    """Documents that come through the component, and those that its error handler is given."""
    component = nlp.get_pipe("mta_benepar")
    failed = []
    before = component.get_error_handler()
    component.set_error_handler(lambda name, proc, docs, error: failed.append([doc.text for doc in docs]))
    through = [doc.text for doc in component.pipe(iter(docs), batch_size=batch_size)]
    component.set_error_handler(before)
    return through, failed


def test_a_document_without_boundaries_fails_alone(nlp):
    docs = [nlp("One dog."), nlp.make_doc("Two dogs. Three."), nlp("Four.")]
    assert handled(nlp, docs, 3) == (["One dog.", "Four."], [["Two dogs. Three."]])


def test_a_batch_that_fails_goes_to_the_error_handler_and_the_next_goes_on(nlp, monkeypatch):
    engine = nlp.get_pipe("mta_benepar").engine
    real = engine.constituents

    def failing(sentences):
        if any("bad" in sentence.words for sentence in sentences):
            raise RuntimeError("no")
        return real(sentences)

    docs = [nlp(text) for text in ["One.", "A bad one.", "Three.", "Four."]]
    monkeypatch.setattr(engine, "constituents", failing)
    assert handled(nlp, docs, 2) == (["Three.", "Four."], [["One.", "A bad one."]])


def test_a_long_sentence_is_cut_and_its_parts_stand_side_by_side(nlp):
    clause = "the old dog barks at the tall man , "
    with pytest.warns(UserWarning, match=r"1 sentence\(s\) too long"):
        doc = nlp("Yes. " + clause * 80 + "and leaves.")
    _, sent = doc.sents
    assert sent._.labels == ("TOP",)
    parts = list(sent._.children)
    assert len(parts) > 1
    assert all(part._.labels and part.text.endswith(",") for part in parts[:-1])
    assert [span.text for span in doc.spans["chunks"]].count("the tall man") == 80


def test_a_word_too_long_has_no_labels_and_the_rest_is_parsed(nlp):
    with pytest.warns(UserWarning, match="no labels"):
        doc = nlp("The dog saw " + "q#" * 400 + " and the old cat .")
    word = max(doc, key=len)
    assert len(word) > 500
    assert word._.labels == ()
    assert "the old cat" in [span.text for span in doc.spans["chunks"]]


def test_a_stored_pipeline_comes_back(nlp, tmp_path):
    nlp.to_disk(tmp_path / "nlp")
    again = spacy.load(tmp_path / "nlp")
    assert nodes_of(again(TEXT)) == nodes_of(nlp(TEXT))
    assert sum(file.stat().st_size for file in (tmp_path / "nlp" / "mta_benepar").iterdir()) < 1000
    assert nlp.from_bytes(nlp.to_bytes()) is nlp


def test_a_pipeline_stored_with_another_model_is_refused(exported, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(exported).iterdir():
        (folder / file.name).symlink_to(file)
    nlp = pipeline_with(model=str(folder))
    stored = nlp.to_bytes()
    nlp.to_disk(tmp_path / "nlp")
    settings_file = folder / "tokenizer_config.json"
    changed = settings_file.read_text() + "\n"
    settings_file.unlink()
    settings_file.write_text(changed)
    with pytest.raises(StateError, match=r"saved with the parser 'model' .* but its `model`"):
        spacy.load(tmp_path / "nlp")
    with pytest.raises(StateError, match="saved with"):
        pipeline_with(model=str(folder)).from_bytes(stored)
    right = {"components": {"mta_benepar": {"model": exported}}}
    assert spacy.load(tmp_path / "nlp", config=right)("Yes.")._.has("_constituent_data")


def test_a_component_survives_pickling_with_its_settings():
    component = pipeline_with(token_budget=256, disable_tagger=True).get_pipe("mta_benepar")
    again = pickle.loads(pickle.dumps(component))
    assert (again.settings, again.identity()) == (component.settings, component.identity())
    assert again.engine.token_budget == 256


def test_parsed_documents_can_be_stored(nlp):
    doc = nlp(f"{TEXT} Yes.")
    again = Doc(nlp.vocab).from_bytes(doc.to_bytes())
    (packed,) = DocBin(store_user_data=True, docs=[doc]).get_docs(nlp.vocab)
    assert nodes_of(again) == nodes_of(doc)
    assert nodes_of(packed)[:4] == nodes_of(doc)[:4]
    assert [span.text for span in packed.spans["chunks"]] == [span.text for span in doc.spans["chunks"]]


@pytest.mark.parametrize("config", [{"precision": "int4"}, {"token_budget": "many"}, {"colour": "red"}])
def test_a_config_that_does_not_fit_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        pipeline_with(**config)


def test_spacy_finds_the_component_by_itself_and_loads_nothing_before(tmp_path):
    code = (
        "import spacy, sys; nlp = spacy.blank('en'); print('benepar' in sys.modules, 'transformers' in sys.modules);"
        "nlp.add_pipe('sentencizer'); nlp.add_pipe('mta_benepar'); print(*(s._.parse_string for s in nlp('Yes.').sents))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False", "(INTJ (UH Yes) (. .))"]
