"""Responses by transformers, a batch at a time: the back end that is always there.

Prompts that are of like length generate together. On a CPU several batches are in work at a time, each in a thread with a
copy of the model that shares its weights, and torch's own threads are off: so a response does not depend on how many cores
there are.
"""

import collections.abc
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue

from pipeline.shards.pool import Tick
from schemas.config import GenerateConfig, ModelConfig
from trainer.evaluation.batches import batches_by_length, responses_of
from trainer.evaluation.generate import Generator, Prompt, Response, Sampling
from trainer.evaluation.responses import load
from trainer.models.twin import twin


class Batches:
    """A model of transformers (protocol: `pipeline.generate.responder.Responder`)."""

    def __init__(self, config: GenerateConfig, model: ModelConfig, threads: int) -> None:
        """Raises `UserError` and its kin as `load` does."""
        loaded = load(model, config.template, config.conversations)
        self.speech = loaded.speech
        self.max_length = loaded.teacher.max_length
        self._batch_size, self._device = config.batch_size, loaded.teacher.device
        drawn = config.sampling
        first = Generator(
            loaded.teacher.model,
            loaded.stop,
            config.max_new_tokens,
            Sampling(drawn.temperature, drawn.top_k, drawn.top_p),
        )
        # what other libraries have put into a model (placement over devices, packed weights) belongs to one copy
        shareable = self._device.type == "cpu" and not (model.device_map or model.quantization)
        self.threads = threads if shareable else 1
        self.idle: SimpleQueue[Generator] = SimpleQueue()
        for number in range(self.threads):
            self.idle.put(twin(first, loaded.teacher.model) if number else first)

    def __call__(self, prompts: Sequence[Prompt], tick: Tick) -> list[Response]:
        """The response to each, in their order."""
        batches = list(batches_by_length(prompts, self._batch_size))
        by_place: dict[int, Response] = {}
        with closing(self._in_threads(prompts, batches)) as results:
            for places, responses in zip(batches, results, strict=True):
                by_place |= dict(zip(places, responses, strict=True))
                tick(len(places), sum(len(response.ids) for response in responses))
        return [by_place[place] for place in range(len(prompts))]

    def _in_threads(
        self, prompts: Sequence[Prompt], batches: Sequence[list[int]]
    ) -> collections.abc.Generator[list[Response], None, None]:
        """The batches' responses, in order; whatever ends this early ends the threads with it."""
        ended = threading.Event()

        def respond(places: list[int]) -> list[Response]:
            generator = self.idle.get()
            generator.interrupted = ended.is_set
            try:
                return responses_of([prompts[place] for place in places], generator, self._device)
            finally:
                self.idle.put(generator)

        pool = ThreadPoolExecutor(self.threads)
        try:
            yield from pool.map(respond, batches)
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)
