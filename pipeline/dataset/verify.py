"""`mta-prep verify`: whether a prepared dataset is whole, and says the truth about its texts.

Always: checksums, schema, rows of every shard against the manifest, rows in = rows out + rejected + dropped, fingerprints, both
sides' tokens.
Unless quick, on every row: spans in bounds and in order, trees of words, offsets monotone and covering every letter and
digit between the first and the last token, token spans that follow from them, and MinED's alignment from the tokens; and, where a
tokenizer can be loaded, the row tokenized again and compared to the last id and offset, and what its tokens decode to held
against offsets and token spans.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.align.edit_distance import EditAlignment
from pipeline.align.vocabulary import SideVocabulary, read_nearest, read_side, shared_tokens, vocabulary_file
from pipeline.dataset import assemble, shards
from pipeline.dataset.columns import spans_of
from pipeline.dataset.decoding import Decoder
from pipeline.dataset.findings import Findings, check_config, looked_at
from pipeline.read.chat_tokenizer import open_tokenizer
from pipeline.read.tokenizers import Encoding, OffsetTokenizer
from pipeline.text import SEPARATOR, Rendered
from schemas.columns import GRANULARITIES, LABELLED, MINED, SIDES, Granularity, Side, arrow_schema, side_column
from schemas.config import ParseConfig
from schemas.console import counted
from schemas.dataset import open_shard
from schemas.errors import DamagedError, UserError
from schemas.manifest import Manifest, ShardFile, read_manifest
from schemas.rows import Reason
from schemas.saved_dataset import dataset_files
from schemas.vocabulary import VOCABULARY

#: How the tree of a sentence begins: its root, and what it holds.
_TREE: Final = re.compile(r"\(TOP \(\S+ \S")


def verify(folder: Path, *, quick: bool, moved: Mapping[Side, str | None]) -> Findings:
    """Check `folder`; `moved` names tokenizers that are no longer where the config says.

    Raises `StateError` if there is no readable manifest.
    """
    manifest = read_manifest(folder)
    findings = Findings()
    config = ParseConfig.parse(manifest.config, str(folder))
    schema = arrow_schema(config.parser.keep_trees, config.mined is not None)
    tokenizers = {} if quick else _tokenizers(config, manifest, moved, findings)
    decoders = _decoders(tokenizers, findings)
    whole, teacher = shards.Fingerprint(), shards.Fingerprint()
    # the paper's extractor leaves partial overlaps
    flat: set[Granularity] = {"words", "chunks"} if config.parser.kind == "benepar" else {"words"}
    sides = _check_vocabulary(manifest, folder, tokenizers, findings)
    edits = EditAlignment.of(sides) if config.mined is not None and sides is not None and not quick else None
    check_config(folder, config, findings)
    names = [shard.file for shard in manifest.shards]
    for name, text in dataset_files(schema, names, manifest.fingerprint).items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode():
            findings.problem(f"{name}, by which `datasets.load_from_disk` opens the folder, is not as it was written.")

    def opened(shard: ShardFile) -> pa.Table | DamagedError:
        try:
            return open_shard(folder, shard, content=True)
        except DamagedError as error:
            return error

    for shard, table in zip(manifest.shards, looked_at(opened, manifest.shards), strict=True):
        if isinstance(table, DamagedError):
            findings.problem(f"{table.what}.")
            continue
        findings.checked["shards"] += 1
        if not table.schema.equals(schema):
            findings.problem(f"{shard.file} has other columns than the config's `parser.keep_trees` and `mined` say.")
            continue
        if not quick:
            digests = _check_rows(table, shard.file, flat, tokenizers, decoders, edits, findings)
            whole.update(digest.whole for digest in digests)
            teacher.update(digest.teacher for digest in digests)
    _check_counts(manifest, folder, findings)
    if not quick and not findings.found:
        if whole.hexdigest() != manifest.fingerprint:
            findings.problem("The fingerprint in the manifest is not that of the rows.")
        if teacher.hexdigest() != manifest.teacher_fingerprint:
            findings.problem("The teacher fingerprint in the manifest is not that of the rows.")
    return findings


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


def _check_counts(manifest: Manifest, folder: Path, findings: Findings) -> None:
    out = sum(shard.rows for shard in manifest.shards)
    lost = sum(manifest.rejected.values()) + sum(manifest.dropped.values())
    if manifest.rows_out != out:
        findings.problem(f"The manifest says {manifest.rows_out} rows were written, its shards hold {out}.")
    if manifest.rows_in != manifest.rows_out + lost:
        findings.problem(f"{manifest.rows_in} rows in, but {manifest.rows_out} out and {lost} accounted for.")
    path = folder / shards.REJECTED
    kept = path.read_bytes().count(b"\n") if path.exists() else 0
    if kept != lost:
        findings.problem(f"{shards.REJECTED} holds {counted(kept, 'row')}, by the manifest {lost} were left out.")


def _check_vocabulary(
    manifest: Manifest, folder: Path, tokenizers: Mapping[Side, OffsetTokenizer], findings: Findings
) -> dict[Side, SideVocabulary] | None:
    """Whether the file of tokens is whole, its map follows from what they spell, and that is what the tokenizers say.

    Returns both sides' tokens, if they can be read.
    """
    if manifest.vocabulary is None:
        return None
    if (problem := manifest.vocabulary_problem(folder)) is not None:
        findings.problem(f"{problem}.")
        return None
    try:
        sides: dict[Side, SideVocabulary] = {side: read_side(folder, side) for side in SIDES}
    except ValueError as error:
        findings.problem(f"{error}.")
        return None
    nearest = None
    if manifest.config.get("mined") == "nearest":
        try:
            nearest = read_nearest(folder, sides)
        except ValueError as error:
            findings.problem(f"{error}.")
            return None
    if (folder / VOCABULARY).read_bytes() != vocabulary_file(sides, shared_tokens(sides), nearest):
        findings.problem(f"{VOCABULARY} has other shared tokens than follow from what the tokens spell.")
    for side, tokenizer in tokenizers.items():
        if SideVocabulary.of(tokenizer) != sides[side]:
            findings.problem(f"{VOCABULARY} says of the {side}'s tokens other than its tokenizer.")
    return sides


def _check_rows(
    table: pa.Table,
    file: str,
    flat: set[Granularity],
    tokenizers: Mapping[Side, OffsetTokenizer],
    decoders: Mapping[Side, Decoder],
    edits: EditAlignment | None,
    findings: Findings,
) -> tuple[shards.RowDigest, ...]:
    try:
        documents = assemble.DocumentColumns.from_table(table)
    except ValueError as error:
        findings.problem(f"{file}: {error}")
        return ()
    stored = {side: assemble.stored_encodings(table, side) for side in SIDES}
    spans = {side: {name: spans_of(table.column(side_column(side, name))) for name in GRANULARITIES} for side in SIDES}
    findings.checked["rows"] += table.num_rows
    findings.checked["units"] += sum(len(of_row) for name in GRANULARITIES for of_row in documents.units[name])
    before = findings.found
    for row, own in enumerate(documents.rows):
        text = own.text
        place = f"{file}, row {row} (id {own.id})"
        if wrong := row_problem(own):
            findings.problem(f"{place}: {wrong}.")
            continue
        units = {name: documents.units[name][row] for name in GRANULARITIES}
        for name in GRANULARITIES:
            wrong = span_problem(units[name], len(text), flat=name in flat)
            if wrong:
                findings.problem(f"{place}: {name} {wrong}.")
        if wrong := span_problem(documents.sentences[row], len(text), flat=True):
            findings.problem(f"{place}: sentences {wrong}.")
        trees = None if documents.trees is None else documents.trees[row]
        if trees is not None and (wrong := tree_problem(trees, len(documents.sentences[row]))):
            findings.problem(f"{place}: trees {wrong}.")
        for name in LABELLED:
            if len(documents.labels[name][row]) != len(units[name]):
                findings.problem(f"{place}: {name} and their labels differ in number.")
        for side in SIDES:
            encoding = stored[side][row]
            findings.checked["tokens"] += len(encoding.input_ids)
            wrong = token_problem(encoding)
            if wrong:
                findings.problem(f"{place}: {side} tokens {wrong}.")
                continue
            of_units = {name: (units[name], spans[side][name][row]) for name in GRANULARITIES}
            wrong = offset_problem(own, encoding)
            if wrong is None and side in decoders:
                wrong = decoders[side].problem(own, encoding, of_units)
            if wrong:
                findings.problem(f"{place}: {side} {wrong}.")
    if findings.found > before:
        return ()  # what follows takes spans and offsets at their word
    for side, tokenizer in tokenizers.items():
        again = tokenizer.encode(documents.rows)
        for row, (new, old) in enumerate(zip(again, stored[side], strict=True)):
            if isinstance(new, Reason) or not same_tokens(new, old):
                findings.problem(
                    f"{file}, row {row} (id {documents.rows[row].id}): {side} tokens are not the tokenizer's."
                )
    output = assemble.shard(documents, stored, {}, stats={}, left_out=[], edits=edits)
    for side in SIDES:
        for name in GRANULARITIES:
            column = side_column(side, name)
            if not _same_column(output.table, table, column):
                findings.problem(f"{file}: {column} does not follow from {name} and {side}_offsets.")
    if edits is not None and not _same_column(output.table, table, MINED[0]):
        findings.problem(f"{file}: {MINED[0]} does not follow from the tokens before learnt ones and what they spell.")
    return output.digests


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
