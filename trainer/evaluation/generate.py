"""Responses to prompts, a batch at a time, sampled so that a row's response does not depend on the rows beside it.

A token is sampled by the Gumbel-max trick (Gumbel 1954; Maddison, Tarlow and Minka 2014): with g_i = −log E_i and E_i
exponential, argmax_i (logit_i + g_i) has exactly the distribution softmax(logits). It is done in two stages, which is as
exact and needs some 2·sqrt(V) numbers a token and not V: the best of all blocks of `BLOCK` tokens by the logarithm of
their total weight, then the best token of that block. The numbers are those of a counter-based generator (Philox:
Salmon and others 2011), a function of the seed, the row's own number and the step alone; they are drawn on the host, so
every device gets the same.

What is deterministic: with one model, dtype, device, library version and batching, every response. With another batch
size the noise is the same, but a row's logits are sums in another order, and may differ in their last bits; a token
changes where the best two of a stage are as near to each other as that, and from there on so does the response. In float32
that is rare: differences of some 1e-6 against gaps of order 1. In bfloat16 and float16 it is not: there most long responses
part sooner or later. Of 24 responses of 256 tokens by the embedded teacher, in batches of 3, 8 and 24 against one by one,
all 24 were the same in float32, and 6 to 12 in bfloat16. Greedy decoding parts likewise, where two logits are that near.

Prompts are padded on the left. When half of a batch's rows have ended, generation goes on without them, on a cache of the
others alone: the few long responses of a batch do not pay for all its short ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from schemas.errors import UserError

#: Tokens of which the first stage chooses as of one: near the square root of usual vocabularies.
BLOCK: Final = 256


@dataclass(frozen=True)
class Sampling:
    """How the distribution is changed before a token is drawn, in this order; as it stands, not at all."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """Token ids to go on from, and whose noise to use; `seed` None is greedy decoding."""

    ids: tuple[int, ...]
    row: int
    seed: int | None


@dataclass(frozen=True)
class Response:
    """Token ids without the stop token, and whether there was one."""

    ids: tuple[int, ...]
    stopped: bool


def gumbel(seed: int, row: int, step: int, count: int) -> Float[np.ndarray, " count"]:
    """Standard Gumbel noise, in float64: in float32 exponential numbers have too few digits near 0, where the maximum is."""
    bits = np.random.Philox(key=np.array([seed, row], dtype=np.uint64), counter=[0, step, 0, 0])
    return -np.log(np.random.Generator(bits).standard_exponential(count))


def sample(
    scores: Float[Tensor, "rows vocabulary"], noise: Callable[[int, int], Float[np.ndarray, " count"]]
) -> Int64[Tensor, " rows"]:
    """A token of each row, distributed as softmax(scores): the two stages of the module's docstring.

    `noise(row, count)` gives a row's Gumbel noise: that of its blocks, then that of the tokens of the chosen one. Scores
    of −inf are never chosen.
    """
    rows, vocabulary = scores.shape
    blocks = -(-vocabulary // BLOCK)
    drawn = np.stack([noise(row, blocks + BLOCK) for row in range(rows)])
    added = torch.from_numpy(drawn).to(scores.device)
    padded = torch.nn.functional.pad(scores, (0, blocks * BLOCK - vocabulary), value=-torch.inf)
    parts = padded.view(rows, blocks, BLOCK)
    chosen = (parts.logsumexp(2) + added[:, :blocks]).argmax(1)
    inside = parts[torch.arange(rows, device=scores.device), chosen]
    token: Tensor = chosen * BLOCK + (inside + added[:, blocks:]).argmax(1)
    return token


class _Chooser(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Puts the sampled token of every row above all others, so that the argmax of `generate` takes it."""

    def __init__(self, prompts: Sequence[Prompt], width: int) -> None:
        self._prompts = prompts
        self._width = width  # of the prompts, padded

    def __call__(
        self, input_ids: Int64[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        step = input_ids.shape[1] - self._width

        def noise(row: int, count: int) -> Float[np.ndarray, " count"]:
            prompt = self._prompts[row]
            assert prompt.seed is not None
            return gumbel(prompt.seed, prompt.row, step, count)

        return scores.scatter(1, sample(scores, noise)[:, None], torch.inf)


class _Sound(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """Refuses logits that are not numbers, out of which any token could be made."""

    def __call__(
        self, input_ids: Int64[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        if bool(scores.amax(1).isnan().any()):
            raise UserError(
                f"The model's logits are not numbers (NaN) after {input_ids.shape[1]} tokens. Its weights are damaged, or "
                "too large for its dtype: try --dtype float32."
            )
        return scores


class _HalfEnded(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Ends a stage when at most half of the rows that it began with go on."""

    def __init__(self, ended: Callable[[Int64[Tensor, " rows"]], Bool[Tensor, " rows"]]) -> None:
        self._ended = ended

    def __call__(
        self, input_ids: Int64[Tensor, "rows tokens"], scores: object, **_options: object
    ) -> Bool[Tensor, " rows"]:
        # a row that has ended is filled with a stop token, so its last one tells
        ended = self._ended(input_ids[:, -1])
        return ended | (2 * ended.sum() >= len(ended))


class Interrupted(Exception):  # noqa: N818  # no error
    """Generation was told to end before the responses did."""


class _Interruption(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Looks after every token whether anybody still wants the next."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self._interrupted = interrupted

    def __call__(
        self, input_ids: Int64[Tensor, "rows tokens"], scores: object, **_options: object
    ) -> Bool[Tensor, " rows"]:
        if self._interrupted():
            raise Interrupted
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _never() -> bool:
    return False


class Generator:
    """Generates with a causal language model and its key-value cache, through transformers' `generate`."""

    def __init__(self, model: Any, stop: Sequence[int], new_tokens: int, sampling: Sampling) -> None:
        """`stop`: ids that end a response, which may be none; `new_tokens`: most of one, the stop token included.

        The model's own generation config (sampling, penalties, lengths) is put out of force.
        """
        self._model = model
        self._stop = torch.tensor(sorted(set(stop)), dtype=torch.int64, device=model.device)
        self._new_tokens = new_tokens
        self._filters = _filters(sampling)
        self._fill = int(self._stop[0]) if len(self._stop) else 0
        #: Asked after every token, where generation runs in a thread; `Interrupted` is raised once it says so.
        self.interrupted: Callable[[], bool] = _never
        model.generation_config = GenerationConfig(pad_token_id=self._fill, eos_token_id=self._stop.tolist() or None)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt]) -> list[Response]:
        """The response to each prompt of one batch; all are greedy, or none is."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._fill)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        cache = DynamicCache(config=self._model.config)
        # states of recurrent layers cannot be taken apart by rows
        stages = all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
        left = list(range(len(prompts)))
        responses: dict[int, Response] = {}
        while left:
            ids = self._model.generate(
                ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=width + self._new_tokens - ids.shape[1],
                logits_processor=self._processors([prompts[row] for row in left], width),
                stopping_criteria=StoppingCriteriaList(
                    [_Interruption(self.interrupted), *([_HalfEnded(self._ended)] if stages else [])]
                ),
            )
            ended = self._ended(ids[:, -1]) | (ids.shape[1] == width + self._new_tokens)
            for place in ended.nonzero().flatten().tolist():
                responses[left[place]] = self._response(ids[place, width:].tolist())
            going = (~ended).nonzero().flatten()
            left = [left[place] for place in going.tolist()]
            ids = ids[going]
            mask = torch.nn.functional.pad(mask[going], (0, ids.shape[1] - mask.shape[1]), value=1)
            if left:
                cache.batch_select_indices(going)
        return [responses[row] for row in range(len(prompts))]

    def _processors(self, prompts: Sequence[Prompt], width: int) -> LogitsProcessorList:
        greedy = {prompt.seed is None for prompt in prompts}
        if len(greedy) > 1:
            raise ValueError("a batch is greedy or sampled, not both")
        chosen = [] if greedy == {True} else [*self._filters, _Chooser(prompts, width)]
        return LogitsProcessorList([_Sound(), *chosen])

    def _ended(self, last: Int64[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        return torch.isin(last, self._stop)

    def _response(self, ids: list[int]) -> Response:
        stop = set(self._stop.tolist())
        end = next((place for place, token in enumerate(ids) if token in stop), None)
        return Response(tuple(ids[:end]), end is not None)


def _filters(sampling: Sampling) -> list[LogitsProcessor]:
    filters: list[LogitsProcessor] = []
    if sampling.temperature != 1:
        filters.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    return filters
