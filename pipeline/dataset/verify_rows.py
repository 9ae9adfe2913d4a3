"""Every row of a prepared dataset, looked at (`pipeline.dataset.verify`).

Spans in bounds and in order, trees of words, offsets monotone and covering every letter and digit between the first and the
last token, token spans that follow from them, and MinED's alignment from the tokens; and, where a tokenizer can be loaded, the
row tokenized again and compared to the last id and offset, and what its tokens decode to held against offsets and token spans.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.align.edit_distance import EditAlignment
from pipeline.align.vocabulary import SideVocabulary
from pipeline.dataset import assemble, shards
from pipeline.dataset.columns import spans_of
from pipeline.dataset.decoding import Decoder
from pipeline.dataset.findings import Findings
from pipeline.read.chat_tokenizer import open_tokenizer
from pipeline.read.tokenizers import Encoding, OffsetTokenizer
from pipeline.text import SEPARATOR, Rendered
from schemas.columns import GRANULARITIES, LABELLED, MINED, SIDES, Granularity, Side, side_column
from schemas.config import ParseConfig
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.rows import Reason
from schemas.vocabulary import VOCABULARY

#: How the tree of a sentence begins: its root, and what it holds.
_TREE: Final = re.compile(r"\(TOP \(\S+ \S")


class RowChecks:
    """Looks at the rows of one dataset, shard by shard, and notes what is wrong."""

    def __init__(
        self, config: ParseConfig, manifest: Manifest, moved: Mapping[Side, str | None], findings: Findings
    ) -> None:
        """`moved` names tokenizers that are no longer where the config says."""
        self._manifest = manifest
        self._findings = findings
        self._tokenizers = _tokenizers(config, manifest, moved, findings)
        self._decoders = _decoders(self._tokenizers, findings)
        # the paper's extractor leaves partial overlaps
        self._flat: set[Granularity] = {"words", "chunks"} if config.parser.kind == "benepar" else {"words"}
        self._mined = config.mined is not None
        self._edits: EditAlignment | None = None
        self._whole, self._teacher = shards.Fingerprint(), shards.Fingerprint()

    def take(self, sides: Mapping[Side, SideVocabulary]) -> None:
        """Both sides' tokens: whether they are what the tokenizers say; MinED's alignment is made from them."""
        for side, tokenizer in self._tokenizers.items():
            if SideVocabulary.of(tokenizer) != sides[side]:
                self._findings.problem(f"{VOCABULARY} says of the {side}'s tokens other than its tokenizer.")
        if self._mined:
            self._edits = EditAlignment.of(sides)

    def check_fingerprints(self) -> None:
        """Once every shard was looked at: whether the manifest's are those of the rows."""
        if self._whole.hexdigest() != self._manifest.fingerprint:
            self._findings.problem("The fingerprint in the manifest is not that of the rows.")
        if self._teacher.hexdigest() != self._manifest.teacher_fingerprint:
            self._findings.problem("The teacher fingerprint in the manifest is not that of the rows.")

    def check(self, table: pa.Table, file: str) -> None:
        """One shard."""
        try:
            documents = assemble.DocumentColumns.from_table(table)
        except ValueError as error:
            self._findings.problem(f"{file}: {error}")
            return
        stored = {side: assemble.stored_encodings(table, side) for side in SIDES}
        spans = {
            side: {name: spans_of(table.column(side_column(side, name))) for name in GRANULARITIES} for side in SIDES
        }
        self._findings.checked["rows"] += table.num_rows
        self._findings.checked["units"] += sum(
            len(of_row) for name in GRANULARITIES for of_row in documents.units[name]
        )
        before = self._findings.found
        for row, own in enumerate(documents.rows):
            text = own.text
            place = f"{file}, row {row} (id {own.id})"
            if wrong := row_problem(own):
                self._findings.problem(f"{place}: {wrong}.")
                continue
            units = {name: documents.units[name][row] for name in GRANULARITIES}
            for name in GRANULARITIES:
                wrong = span_problem(units[name], len(text), flat=name in self._flat)
                if wrong:
                    self._findings.problem(f"{place}: {name} {wrong}.")
            if wrong := span_problem(documents.sentences[row], len(text), flat=True):
                self._findings.problem(f"{place}: sentences {wrong}.")
            trees = None if documents.trees is None else documents.trees[row]
            if trees is not None and (wrong := tree_problem(trees, len(documents.sentences[row]))):
                self._findings.problem(f"{place}: trees {wrong}.")
            for name in LABELLED:
                if len(documents.labels[name][row]) != len(units[name]):
                    self._findings.problem(f"{place}: {name} and their labels differ in number.")
            for side in SIDES:
                encoding = stored[side][row]
                self._findings.checked["tokens"] += len(encoding.input_ids)
                wrong = token_problem(encoding)
                if wrong:
                    self._findings.problem(f"{place}: {side} tokens {wrong}.")
                    continue
                of_units = {name: (units[name], spans[side][name][row]) for name in GRANULARITIES}
                wrong = offset_problem(own, encoding)
                if wrong is None and side in self._decoders:
                    wrong = self._decoders[side].problem(own, encoding, of_units)
                if wrong:
                    self._findings.problem(f"{place}: {side} {wrong}.")
        if self._findings.found > before:
            return  # what follows takes spans and offsets at their word
        for side, tokenizer in self._tokenizers.items():
            again = tokenizer.encode(documents.rows)
            for row, (new, old) in enumerate(zip(again, stored[side], strict=True)):
                if isinstance(new, Reason) or not same_tokens(new, old):
                    self._findings.problem(
                        f"{file}, row {row} (id {documents.rows[row].id}): {side} tokens are not the tokenizer's."
                    )
        output = assemble.shard(documents, stored, {}, stats={}, left_out=[], edits=self._edits)
        for side in SIDES:
            for name in GRANULARITIES:
                column = side_column(side, name)
                if not _same_column(output.table, table, column):
                    self._findings.problem(f"{file}: {column} does not follow from {name} and {side}_offsets.")
        if self._edits is not None and not _same_column(output.table, table, MINED[0]):
            self._findings.problem(
                f"{file}: {MINED[0]} does not follow from the tokens before learnt ones and what they spell."
            )
        self._whole.update(digest.whole for digest in output.digests)
        self._teacher.update(digest.teacher for digest in output.digests)


def _tokenizers(
    config: ParseConfig, manifest: Manifest, moved: Mapping[Side, str | None], findings: Findings
) -> dict[Side, OffsetTokenizer]:
    loaded: dict[Side, OffsetTokenizer] = {}
    for side in SIDES:
        settings = getattr(config, side)
        settings = settings.model_copy(update={"tokenizer": moved.get(side) or settings.tokenizer})
        try:
            tokenizer = open_tokenizer(side, settings, config)
        except UserError as error:
            findings.retokenized[side] = f"no: {error}"
            continue
        if tokenizer.identity().get("template") != manifest.tokenizers[side].get("template"):
            findings.retokenized[side] = (
                f"no: the chat template of {settings.tokenizer} is another one (its hash differs)"
            )
            continue
        if tokenizer.identity()["sha256"] != manifest.tokenizers[side]["sha256"]:
            findings.retokenized[side] = f"no: the tokenizer at {settings.tokenizer} is another one (its hash differs)"
            continue
        loaded[side] = tokenizer
        findings.retokenized[side] = "every row"
    return loaded


def _decoders(tokenizers: Mapping[Side, OffsetTokenizer], findings: Findings) -> dict[Side, Decoder]:
    decoders = {side: Decoder(tokenizer) for side, tokenizer in tokenizers.items()}
    refused = {side: reason for side, decoder in decoders.items() if (reason := decoder.refusal()) is not None}
    for side in decoders:
        findings.decoded[side] = f"no: {refused[side]}" if side in refused else "every row"
    return {side: decoder for side, decoder in decoders.items() if side not in refused}


def _same_column(one: pa.Table, other: pa.Table, name: str) -> bool:
    return bool(one.column(name).combine_chunks().equals(other.column(name).combine_chunks()))


def same_tokens(new: Encoding, old: Encoding) -> bool:
    """Whether two encodings agree in ids, offsets and what is learnt."""
    return (
        np.array_equal(new.input_ids, old.input_ids)
        and np.array_equal(new.offsets, old.offsets)
        and np.array_equal(new.responses, old.responses)
    )


def span_problem(spans: np.ndarray, length: int, flat: bool) -> str | None:
    """What is wrong with units' character spans, if anything: bounds, order, overlap."""
    starts, ends = spans[:, 0], spans[:, 1]
    if (starts < 0).any() or (ends > length).any() or (starts >= ends).any():
        return "reach outside the text or are empty"
    if (np.diff(starts) < 0).any():
        return "are out of order"
    if flat and (starts[1:] < ends[:-1]).any():
        return "overlap"
    return None


def tree_problem(trees: Sequence[str], sentences: int) -> str | None:
    """What is wrong with a row's bracketed trees, if anything: their number, or one that is no tree of words.

    A sentence that was not parsed has an empty text, and none has a tree without words. Brackets of words are spelled.
    """
    if len(trees) != sentences:
        return f"are {len(trees)}, and sentences {sentences}"
    for number, tree in enumerate(trees, 1):
        if tree and not (_TREE.match(tree) and tree.count("(") == tree.count(")") and tree.endswith("))")):
            return f"have none of words for sentence {number}"
    return None


def token_problem(encoding: Encoding) -> str | None:
    """What is wrong with a row's tokens by themselves, if anything."""
    if len(encoding.offsets) != len(encoding.input_ids):
        return f"are {len(encoding.input_ids)}, and their offsets {len(encoding.offsets)}"
    if (encoding.input_ids < 0).any():
        return "have ids below 0"
    starts, ends = encoding.responses.T
    if (starts < 0).any() or (starts >= ends).any() or (starts[1:] < ends[:-1]).any():
        return "have responses that are empty, out of order or overlap"
    if (ends > len(encoding.input_ids)).any():
        return f"do not reach to the end of a response at token {int(ends.max())}"
    return None


def row_problem(row: Rendered) -> str | None:
    """What is wrong with a row's text, contents and responses, if anything."""
    contents, responses = (
        np.array(spans, dtype=np.int64).reshape(-1, 2)
        for spans in ([(content.start, content.end) for content in row.messages], row.responses)
    )
    for name, spans in (("messages", contents), ("responses", responses)):
        wrong = span_problem(spans, len(row.text), flat=True)
        if wrong:
            return f"{name} {wrong}"
    if row.conversation is None:
        return None if len(responses) == 1 and not len(contents) else "a text without a conversation has one response"
    if row.text != SEPARATOR.join(content.text for content in row.conversation.contents):
        return "the text is not that of its messages"
    return None if set(row.responses) <= set(map(tuple, contents.tolist())) else "a response is no content"


def offset_problem(row: Rendered, encoding: Encoding) -> str | None:
    """What is wrong with a row's offsets, if anything: bounds, order, a letter or digit that no token covers.

    Of other characters only the tokenizer can tell whether it drops them.
    """
    if row.conversation is not None:
        return _offset_problem_of_contents(row, encoding)
    text, response_start = row.text, row.response_start
    real = encoding.offsets[encoding.offsets[:, 0] >= 0].astype(np.int64)
    if not len(real):
        return "offsets are missing: the row has no token"
    starts, ends = real[:, 0], real[:, 1]
    if (ends > len(text)).any() or (starts > ends).any():
        return "offsets reach outside the text"
    if (np.diff(starts) < 0).any() or (np.diff(ends) < 0).any():
        return "offsets are not monotone"
    first = encoding.offsets[encoding.responses[0, 0] :]
    if (first[first[:, 0] >= 0][:, 0] < response_start).any():
        return "offsets reach across the start of the response"
    depth = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(depth, starts, 1)
    np.add.at(depth, ends, -1)
    covered = np.cumsum(depth)[:-1] > 0
    # truncation takes away the beginning of a prompt and the end of a response, nothing in between
    inside = slice(int(starts[0]), int(ends[-1]))
    gaps = np.flatnonzero(~covered[inside]) + inside.start
    bare = [int(at) for at in gaps if text[at].isalnum()]
    return f"offsets leave out the character at {bare[0]}" if bare else None


def _offset_problem_of_contents(row: Rendered, encoding: Encoding) -> str | None:
    """Of a conversation: every token lies in one content, those of a content are neighbours and in order, and what is learnt
    the assistant says.

    Which characters they must cover the template and the tokenizer decide; their rows are made anew.
    """
    real = np.flatnonzero(encoding.offsets[:, 0] >= 0)
    starts, ends = encoding.offsets[real].astype(np.int64).T
    borders = np.array([(content.start, content.end) for content in row.messages], dtype=np.int64).reshape(-1, 2)
    content = np.searchsorted(borders[:, 0], starts, side="right") - 1
    if (starts > ends).any() or (content < 0).any() or (ends > borders[content, 1]).any():
        return "offsets reach outside the contents"
    inside = content[1:] == content[:-1]
    if (inside & ((np.diff(starts) < 0) | (np.diff(ends) < 0))).any():
        return "offsets are not monotone within a content"
    silent = np.array([placed.role not in ("assistant", "reasoning") for placed in row.messages], dtype=bool)
    learnt = ((encoding.responses[:, :1] <= real) & (real < encoding.responses[:, 1:])).any(0)
    if foreign := np.flatnonzero(learnt & silent[content]).tolist():
        return f"responses hold what the {row.messages[content[foreign[0]]].role} says, at token {real[foreign[0]]}"
    visits = content[np.append(True, ~inside)] if len(content) else content
    return "tokens of one content stand apart" if len(visits) != len(set(visits.tolist())) else None
