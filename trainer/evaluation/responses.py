"""A model's responses to test rows, and their scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from schemas import console
from schemas.config import ModelConfig
from schemas.conversations import Conversation
from schemas.errors import UsageError, UserError
from schemas.rows import RowError
from trainer.evaluation.exact import exact_match
from trainer.evaluation.generate import Generator, Prompt, Response, Sampling
from trainer.evaluation.questions import Question, digest
from trainer.evaluation.results import FileResult, Score
from trainer.evaluation.rouge import RougeL, RougeTokenizer
from trainer.models.chat_template import ChatTemplate
from trainer.models.hub import identity, locate
from trainer.models.loading import LanguageModel, load_model
from trainer.models.memory import in_halves
from trainer.models.tokenizer import surrounding_tokens, tokenizer_beside


@dataclass(frozen=True)
class Loaded:
    """A model to evaluate, with the tokenizer beside it."""

    teacher: LanguageModel  # any causal language model, whatever its part in distillation
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    identity: dict[str, Any]  # name, revision, sha256 of its weights

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids that end a response: all that the generation config or the tokenizer calls end of sequence."""
        told = self.teacher.model.generation_config.eos_token_id
        ids = told if isinstance(told, list) else [told]
        return tuple(sorted({each for each in [*ids, self.tokenizer.eos_token_id] if each is not None}))


def load(config: ModelConfig) -> Loaded:
    """Load it whole. Raises as `trainer.models.loading.load_model` does, and `UserError` if there is no tokenizer with it."""
    source = locate(config, "model")
    who = identity(config, "model")
    subject = f"The tokenizer of the model {config.model!r}"
    tokenizer = tokenizer_beside(source, subject, trust_remote_code=config.trust_remote_code)
    return Loaded(load_model(config, None, "model"), tokenizer, who)


class Evaluation:
    """Asks a model and scores its responses. `seeds`: one response a row with each; None is greedy decoding."""

    def __init__(
        self,
        loaded: Loaded,
        seeds: Sequence[int | None],
        sampling: Sampling,
        max_length: int,
        max_prompt_length: int,
        batch_size: int,
        quiet: bool,
        template: ChatTemplate | None = None,
        rouge_tokenizer: RougeTokenizer = "field",
    ) -> None:
        """`template` renders conversations.

        Every response has `max_length` − `max_prompt_length` tokens at most, the stop token included, so that it does
        not depend on its prompt's length. Raises `UsageError` if the model cannot take `max_length` tokens.
        """
        limit = loaded.teacher.max_length
        if limit is not None and max_length > limit:
            raise UsageError(f"The model takes at most {limit} tokens; pass --max-length {limit} or less.")
        self._device = loaded.teacher.device
        self._tokenizer = loaded.tokenizer
        self._opening, _ = surrounding_tokens(loaded.tokenizer)
        if max_prompt_length <= len(self._opening):
            raise UsageError(
                f"--max-prompt-length {max_prompt_length} leaves no room beside the tokens that open a text."
            )
        self._seeds = seeds
        self._max_prompt_length = max_prompt_length
        self._batch_size = batch_size
        self._quiet = quiet
        self._template = template
        ends = template.end_tokens()[:1] if template else []
        stop = tuple(sorted({*loaded.stop, *ends}))
        self._generator = Generator(
            loaded.teacher.model, stop, new_tokens=max_length - max_prompt_length, sampling=sampling
        )
        self._rouge = RougeL(rouge_tokenizer)

    def file_result(self, name: str, questions: Sequence[Question], keep_texts: bool) -> FileResult:
        """Scores of all rows of a file, at least one."""
        prompts, cut = [], 0
        for question in questions:
            ids, was_cut = self._prompt(question)
            cut += was_cut
            prompts += [Prompt(ids, question.row, seed) for seed in self._seeds]
        responses = self._responses(name, prompts)
        texts = [_answer(self._tokenizer.decode(response.ids, skip_special_tokens=True)) for response in responses]
        shape = (len(questions), len(self._seeds))
        flat = [
            self._rouge.score(text, questions[place // len(self._seeds)].references) for place, text in enumerate(texts)
        ]
        scores = np.array(flat).reshape(shape)
        exact = [exact_match(text, questions[place // len(self._seeds)].references) for place, text in enumerate(texts)]
        return FileResult(
            name=name,
            rows=len(questions),
            sha256=digest(questions),
            cut_prompts=cut,
            rouge_l=Score.of(scores.mean(0).tolist()),
            exact_match=Score.of(np.array(exact).reshape(shape).mean(0).tolist()),
            wordless=sum(self._rouge.sees_nothing(question.references) for question in questions),
            tokens=float(np.mean([len(each.ids) for each in responses])),
            stopped=float(np.mean([each.stopped for each in responses])),
            row_numbers=tuple(question.row for question in questions),
            scores=tuple(map(tuple, scores.tolist())),
            texts=tuple(map(tuple, np.array(texts, dtype=object).reshape(shape).tolist())) if keep_texts else None,
        )

    def _prompt(self, question: Question) -> tuple[tuple[int, ...], bool]:
        """Token ids, of a prompt that is too long the last ones behind those that open a text; and whether it was.

        What a chat template writes, and a text that begins with them, has them already.
        """
        text = question.prompt if isinstance(question.prompt, str) else self._rendered(question.prompt, question.row)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        opening = self._opening
        if ids[: len(opening)] == opening:
            ids = ids[len(opening) :]
        elif not isinstance(question.prompt, str):
            opening = []
        room = self._max_prompt_length - len(opening)
        return (*opening, *ids[-room:]), len(ids) > room

    def _rendered(self, conversation: Conversation, row: int) -> str:
        assert self._template is not None
        try:
            return self._template.render(conversation, add_generation_prompt=True)
        except RowError as error:
            raise UserError(f"Row {row + 1}: {error}.") from None

    def _responses(self, name: str, prompts: Sequence[Prompt]) -> list[Response]:
        """In the order of the prompts. Those of like length run together, the longest first: if there is too little
        memory, it shows at once, and the batch runs in halves."""
        found: dict[int, Response] = {}
        with console.row_progress(name, len(prompts), self._quiet) as progress:
            for places in self._batches(prompts):
                batch = [prompts[place] for place in places]
                parts = in_halves(self._generator, batch, self._device, _too_large)
                responses = [response for part in parts for response in part]
                found |= dict(zip(places, responses, strict=True))
                progress.advance(len(batch), sum(len(each.ids) for each in responses))
        return [found[place] for place in range(len(prompts))]

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place].ids), place))
        for first in range(0, len(order), self._batch_size):
            yield order[first : first + self._batch_size]


def _answer(text: str) -> str:
    """What a model that thinks says behind its thoughts; of any other all."""
    return text.rpartition("</think>")[2].strip()


def default_device() -> str:
    """`cuda` if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _too_large(prompt: Prompt) -> str:
    return f"a single prompt of {len(prompt.ids)} tokens; use a smaller --max-length, or a shorter --dtype."
