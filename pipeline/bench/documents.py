"""What parsers are measured on: sentences of rows that `mta-prep parse` would read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset import prepare
from pipeline.text import Words
from schemas.config import ParseConfig, SideConfig

#: Sentences of the embedded sample that are measured, so that all is done within two minutes.
SENTENCES_OF_SAMPLE = 400
Documents = Sequence[Sequence[Words]]


def sample_documents(longest: int) -> Documents:
    """Some sentences of the embedded sample."""
    return at_most(documents_of(["embedded:sample"], longest), SENTENCES_OF_SAMPLE)


def documents_of(inputs: Sequence[str], longest: int) -> list[list[Words]]:
    """Sentences of each row of `inputs`, rendered and segmented as `mta-prep parse` does; longer ones left out."""
    # the tokenizers play no part here
    side = SideConfig(tokenizer="embedded:bytelevel-bpe")
    config = ParseConfig(inputs=tuple(inputs), teacher=side, student=side)
    with tempfile.TemporaryDirectory() as spool:
        plan = prepare.plan(config, Path(spool))
        stage = prepare.PrepareStage(plan.config)
        rows, _ = stage.render(list(plan.read(0, plan.rows)))
    texts, borders = [row.text for _, row in rows], [row.borders for _, row in rows]
    sentences = [
        [part.words for part in document.sentences if part.parse and 0 < len(part.words.words) <= longest]
        for document in stage.segmenter.segment(texts, borders)
    ]
    return [document for document in sentences if document]


def at_most(documents: Documents, sentences: int) -> Documents:
    """Documents of about so many sentences, taken evenly from all."""
    total = sum(map(len, documents))
    return documents[:: max(1, round(total / sentences))]
