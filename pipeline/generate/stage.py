"""The shard function of a file of responses: rows of prompts through the model, answered rows out."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from pipeline.generate.exchange import FINISHED, Exchange, exchange_of, id_of, reading_of
from pipeline.generate.fields import Naming
from pipeline.generate.responder import Responder
from pipeline.read.records import Record, Rejected
from pipeline.shards.pool import Tick, untold
from schemas.config import GenerateConfig, ModelConfig
from schemas.errors import UsageError
from schemas.rows import Reason, RowError
from trainer.evaluation.answers import Decoder
from trainer.evaluation.generate import Prompt, Response
from trainer.evaluation.prompts import Prompter

#: Of a prompt for a model that has no limit.
_NO_LIMIT: Final = 1 << 40
UNFINISHED: Final = "the response did not end"


@dataclass(frozen=True)
class ResponseShard:
    """A shard (protocol: `pipeline.shards.workspace.Output`): answered rows as lines of JSON."""

    answered: tuple[dict[str, Any], ...]
    stats: dict[str, Any]
    details: dict[str, Any]

    @property
    def rows(self) -> int:
        """Answered ones."""
        return len(self.answered)

    @property
    def others(self) -> Mapping[str, Callable[[IO[bytes]], None]]:
        """None."""
        return {}

    def write(self, stream: IO[bytes]) -> None:
        """One JSON object a line."""
        stream.writelines(map(json_line, self.answered))


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as it stands in a file."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


class GenerateStage:
    """Rows to answered rows."""

    def __init__(self, config: GenerateConfig, model: ModelConfig, threads: int) -> None:
        """Loads the model: `model` is the config's, with its place settled. `threads`: batches in work at a time on a CPU.

        Raises `UserError` and its kin as the back end does, `UsageError` for a model that leaves no room for a prompt.
        """
        self._config, self._naming = config, Naming.of(config.fields)
        self.responder = _responder(config, model, threads)
        speech = self.responder.speech
        self._prompter = Prompter(
            speech.tokenizer,
            speech.template,
            _longest_prompt(config, self.responder.max_length),
            "mta-prep generate",
        )
        self._text_of = Decoder(speech.tokenizer, speech.ending.text)
        self._stop: list[str] = speech.tokenizer.convert_ids_to_tokens(list(speech.stop))

    @property
    def threads(self) -> int:
        """Batches in work at a time."""
        return self.responder.threads

    def run(self, item: Sequence[Record | Rejected], tick: Tick = untold) -> ResponseShard:
        """One shard of input rows, of which each is answered or left out with its reason."""
        exchanges, left_out = self._exchanges(item)
        tick(len(left_out), 0)
        rejected = Counter(row.reason.kind for row in left_out)
        entries = [(row.number, row.entry()) for row in left_out]
        answered: list[tuple[int, dict[str, Any]]] = []
        dropped: Counter[str] = Counter()
        unused: Counter[str] = Counter()
        responses = self._responses(exchanges, tick)
        for exchange, response in zip(exchanges, responses, strict=True):
            number, text = exchange.record.number, self._text_of(response.ids)
            try:
                row = exchange.answered(text, response.stopped)
                reason = None if response.stopped or self._config.unfinished == "keep" else self._unfinished()
            except RowError as error:
                reason = error.reason
            if reason is None:
                answered.append((number, row))
                unused.update(self._naming.unread(exchange.record.fields, row))
                continue
            (dropped if reason.kind == UNFINISHED else rejected)[reason.kind] += 1
            # what was computed is kept
            entries.append((number, exchange.record.left_out(reason, exchange.id).entry() | {"response": text}))
        return ResponseShard(
            tuple(row for _, row in sorted(answered, key=lambda pair: pair[0])),
            {
                "rows_in": len(item),
                "rejected": rejected,
                "dropped": dropped,
                FINISHED: sum(row[FINISHED] for _, row in answered),
                "prompt_tokens": sum(len(exchange.asked.ids) for exchange in exchanges),
                "tokens": sum(len(response.ids) for response in responses),
                "not_carried": unused,
            },
            {"left_out": [entry for _, entry in sorted(entries, key=lambda pair: pair[0])], "stop": self._stop},
        )

    def _unfinished(self) -> Reason:
        return Reason(UNFINISHED, f"within {self._config.max_new_tokens} tokens")

    def _exchanges(self, rows: Sequence[Record | Rejected]) -> tuple[list[Exchange], list[Rejected]]:
        """What can be asked, and the others with their reasons."""
        exchanges, left_out = [], []
        for row in rows:
            if isinstance(row, Rejected):
                left_out.append(row)
                continue
            try:
                exchanges.append(exchange_of(row, reading_of(self._config), self._prompter, self._naming))
            except RowError as error:
                left_out.append(row.left_out(error.reason, id_of(row, self._naming)))
        return exchanges, left_out

    def _responses(self, exchanges: Sequence[Exchange], tick: Tick) -> list[Response]:
        """In the order of the rows."""
        drawn = self._config.sampling
        seed = None if drawn.greedy else drawn.seed
        prompts = [Prompt(exchange.asked.ids, exchange.record.number, seed) for exchange in exchanges]
        return self.responder(prompts, tick)


def _responder(config: GenerateConfig, model: ModelConfig, threads: int) -> Responder:
    """The back end that the config names, which takes seconds to import."""
    if config.backend == "vllm":
        from pipeline.generate.vllm_engine import VllmEngine

        return VllmEngine(config, model)
    from pipeline.generate.batches import Batches

    return Batches(config, model, threads)


def _longest_prompt(config: GenerateConfig, limit: int | None) -> int:
    """Tokens of the longest prompt that is asked."""
    room = _NO_LIMIT if limit is None else limit - config.max_new_tokens
    if room < 1:
        raise UsageError(
            f"The model takes at most {limit} tokens, of which --max-new-tokens {config.max_new_tokens} leaves none for a prompt."
        )
    return min(room, config.max_prompt_length or room)
