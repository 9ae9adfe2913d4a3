"""`mta-prep generate`: rows of prompts and a model in, a file of responses out.

`planned` settles everything before the first response: the rows ask something, the template takes them, who the model is.
`pipeline.generate.place` runs the shards (as those of datasets) in a folder beside the file, and joins them.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pipeline.generate.exchange import exchange_of, reading_of
from pipeline.generate.fields import Naming
from pipeline.read.corpus import Corpus, open_corpus, spool_beside
from pipeline.read.records import Record, Rejected
from pipeline.shards.workspace import RUN, WORK
from schemas.config import GenerateConfig
from schemas.console import counted
from schemas.errors import StateError, UsageError, UserError
from schemas.responses import manifest_of, read_responses_manifest, work_of
from schemas.rows import RowError, holds_something
from trainer.evaluation.prompts import Prompter, open_template
from trainer.evaluation.questions import holds_turns
from trainer.models.chat_template import require_known
from trainer.models.hub import located_here

#: Rows that tell whether they are conversations, and are tried before the run.
SAMPLE_ROWS: Final = 200
#: Batches of a shard: an interruption costs no more, and prompts of like length are found among so many.
SHARD_BATCHES: Final = 4
#: Most tokens of a prompt while nothing has told what the model takes.
_NO_LIMIT: Final = 1 << 40
#: Files of JSON lines, by which `mta-prep parse` knows them.
EXTENSIONS: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class GeneratePlan:
    """What a run will do, known before its first response (protocol: `pipeline.shards.publish.Plan`)."""

    out: Path  # the file
    config: GenerateConfig  # resolved
    corpus: Corpus
    model: dict[str, Any]  # who it is, and its tokenizer
    template: dict[str, Any] | None
    notes: tuple[str, ...]  # what a person should know before the run

    @property
    def shard_rows(self) -> int:
        """Rows of a shard."""
        return self.config.shard_rows or SHARD_BATCHES * self.config.batch_size

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.corpus.rows // self.shard_rows)

    def record(self) -> dict[str, Any]:
        """What makes two runs the same run (`LAYOUT.recorded`)."""
        return {
            "versions": {name: version(name) for name in ("mta-prep", "torch", "transformers")} | self._backend(),
            "config": self.config.model_dump(mode="json"),
            "inputs": [file.model_dump() for file in self.corpus.files],
            "model": self.model,
            "template": self.template,
        }

    def _backend(self) -> dict[str, str]:
        """The version of a back end that is optional."""
        if self.config.backend == "transformers":
            return {}
        from pipeline.generate.vllm_engine import vllm_version

        return {"vllm": vllm_version()}

    @property
    def reads(self) -> dict[str, str]:
        """What the stage opens; rows come to it."""
        return {"model": self.config.model.model} | ({"template": self.config.template} if self.config.template else {})

    def rows_in(self, index: int) -> int:
        """Input rows of a shard."""
        return min(self.shard_rows, self.corpus.rows - index * self.shard_rows)

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Record | Rejected]]]:
        """(index, input rows) of the wanted shards, in order."""
        return self.corpus.items(self.shard_rows, wanted)


def require_writable(out: Path, overwrite: bool) -> None:
    """Raises `UsageError` for what is no name of a file of JSON lines, `StateError` for one that is there and not ours."""
    if out.suffix not in EXTENSIONS or out.is_dir():
        raise UsageError(f"--out {out}: a file of JSON lines is wanted, such as responses.jsonl.")
    ours = manifest_of(out).exists() or (work_of(out) / WORK / RUN).exists()
    if out.exists() and not ours:
        raise StateError(f"{out} is there already, and `mta-prep generate` has not made it. Choose another --out.")
    if overwrite and manifest_of(out).exists():
        read_responses_manifest(out)  # nobody else's is removed


@contextmanager
def planned(config: GenerateConfig, out: Path) -> Iterator[GeneratePlan]:
    """A plan for the file `out`; standard input, if asked for, is kept beside it for as long as the plan is used.

    Raises `UserError` and its kin for anything that would make the run fail later.
    """
    if config.template is not None:
        require_known(config.template)
    if config.backend == "vllm":
        from pipeline.generate.vllm_engine import require_vllm

        require_vllm(config)
    located_here(config.model, "model")
    with spool_beside(out, config.inputs) as spool:
        corpus = open_corpus(config, spool)
        sample, records = corpus.sample(SAMPLE_ROWS)
        naming = Naming.of(config.fields)
        naming.require_there(records)
        turns = any(holds_turns(naming.read(record.fields)) for record in records)
        conversations = config.template is not None or turns
        config = config.model_copy(update={"conversations": conversations})
        _require_askable(config, sample, None)
        # what takes seconds to import comes after all that a wrong name would be refused for
        yield _identified(config, out, corpus, sample)


def _identified(config: GenerateConfig, out: Path, corpus: Corpus, sample: list[Record | Rejected]) -> GeneratePlan:
    """The plan, with who the model is."""
    from trainer.models.hub import identity, locate
    from trainer.models.tokenizer import tokenizer_beside

    subject = f"The tokenizer of the model {config.model.model!r}"
    source = locate(config.model, "model")
    tokenizer = tokenizer_beside(source, subject, trust_remote_code=config.model.trust_remote_code)
    template = open_template(config.template, tokenizer, subject, config.conversations)
    prompter = Prompter(tokenizer, template, config.max_prompt_length or _NO_LIMIT, "mta-prep generate")
    _require_askable(config, sample, prompter)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = None if backend is None else hashlib.sha256(backend.to_str().encode()).hexdigest()
    return GeneratePlan(
        out,
        config,
        corpus,
        {**identity(config.model, "model"), "tokenizer_sha256": definition},
        template.identity() if template is not None and config.conversations else None,
        (*corpus.notes, *_notes_on(config, sample)),
    )


def _notes_on(config: GenerateConfig, sample: list[Record | Rejected]) -> tuple[str, ...]:
    """What `mta-prep parse` will say of the answered rows."""
    if config.conversations:
        return ()
    ready = set()
    for row in sample:
        with suppress(RowError):
            if isinstance(row, Record):
                exchange = exchange_of(row, reading_of(config), None, Naming.of(config.fields))
                ready.add(holds_something(exchange.fields.get("prompt")))
    if len(ready) < 2:
        return ()
    return (
        "Some rows have a `prompt` and others none, and `mta-prep parse` reads one form of single prompts: keep them in two "
        "files, or ask all as conversations, with --template.",
    )


def _require_askable(config: GenerateConfig, sample: list[Record | Rejected], prompter: Prompter | None) -> None:
    """Raises `UserError` if none of the first rows can be asked."""
    naming, reading = Naming.of(config.fields), reading_of(config)
    first = None
    for row in sample:
        if isinstance(row, Rejected):
            first = first or row
            continue
        try:
            exchange_of(row, reading, prompter, naming)
            return
        except RowError as error:
            first = first or row.left_out(error.reason, None)
    assert first is not None
    raise UserError(
        f"None of the first {counted(len(sample), 'row')} can be asked. The first problem: {first.file}, "
        f"line {first.line}: {first.reason}."
    )
