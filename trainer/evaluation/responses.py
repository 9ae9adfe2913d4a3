"""A model's responses to test rows, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from schemas import console
from schemas.config import ModelConfig
from schemas.errors import UsageError
from trainer.evaluation.answers import Decoder, answer_of
from trainer.evaluation.batches import batches_by_length, responses_of
from trainer.evaluation.exact import exact_match
from trainer.evaluation.generate import Generator, Prompt, Response, Sampling
from trainer.evaluation.prompts import Asked, Prompter, open_template
from trainer.evaluation.questions import Question, digest
from trainer.evaluation.results import FileResult, Score
from trainer.evaluation.rouge import RougeL, RougeTokenizer
from trainer.models.chat_ending import Ending, ending_of
from trainer.models.chat_template import ChatTemplate
from trainer.models.hub import identity, locate
from trainer.models.loading import LanguageModel, load_model
from trainer.models.tokenizer import tokenizer_beside


@dataclass(frozen=True)
class Speech:
    """What turns a model's tokens into responses, and says where these end."""

    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    template: ChatTemplate | None  # for conversations
    ends: int | Sequence[int] | None  # what the model's generation config calls end of sequence

    @cached_property
    def ending(self) -> Ending:
        """What follows an answer in the chat template."""
        return Ending("", ()) if self.template is None else ending_of(self.template, self.tokenizer)

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids that end a response: all that the generation config or the tokenizer calls end of sequence, and the one that
        ends a turn in the chat template."""
        ids = self.ends if isinstance(self.ends, Sequence) else [self.ends]
        ends = [*ids, self.tokenizer.eos_token_id, *self.ending.special[:1]]
        return tuple(sorted({index for index in ends if index is not None}))


@dataclass(frozen=True)
class Loaded:
    """A model to evaluate, with the tokenizer beside it."""

    teacher: LanguageModel  # any causal language model, whatever its part in distillation
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    identity: dict[str, Any]  # name, revision, sha256 of its weights
    template: ChatTemplate | None = None  # for conversations

    @property
    def speech(self) -> Speech:
        """Its tokenizer, template and ends."""
        return Speech(self.tokenizer, self.template, self.teacher.model.generation_config.eos_token_id)

    @property
    def ending(self) -> Ending:
        """What follows an answer in the chat template."""
        return self.speech.ending

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids that end a response (`Speech.stop`)."""
        return self.speech.stop


def load(config: ModelConfig, template: str | None = None, conversations: bool = False) -> Loaded:
    """Load it whole, with the chat template of that name; `conversations`: some are asked.

    Raises as `trainer.models.loading.load_model` and `trainer.evaluation.prompts.open_template` do, and `UserError` if
    there is no tokenizer with it.
    """
    source = locate(config, "model")
    who = identity(config, "model")
    subject = f"The tokenizer of the model {config.model!r}"
    tokenizer = tokenizer_beside(source, subject, trust_remote_code=config.trust_remote_code)
    chosen = open_template(template, tokenizer, subject, conversations)
    return Loaded(load_model(config, None, "model"), tokenizer, who, chosen)


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
        rouge_tokenizer: RougeTokenizer = "field",
    ) -> None:
        """Every response has `max_length` − `max_prompt_length` tokens at most, the stop token included, so that it does
        not depend on its prompt's length. Raises `UsageError` if the model cannot take `max_length` tokens."""
        limit = loaded.teacher.max_length
        if limit is not None and max_length > limit:
            raise UsageError(f"The model takes at most {limit} tokens; pass --max-length {limit} or less.")
        self._device = loaded.teacher.device
        self._prompter = Prompter(loaded.tokenizer, loaded.template, max_prompt_length)
        self._text_of = Decoder(loaded.tokenizer, loaded.ending.text)
        self._seeds = seeds
        self._batch_size = batch_size
        self._quiet = quiet
        self._generator = Generator(
            loaded.teacher.model, loaded.stop, new_tokens=max_length - max_prompt_length, sampling=sampling
        )
        self._rouge = RougeL(rouge_tokenizer)

    def asked(self, questions: Sequence[Question]) -> list[Asked]:
        """What the model reads of each. Raises `UserError` for one that cannot be asked, before anything is generated."""
        return [self._prompter(question) for question in questions]

    def file_result(
        self, name: str, questions: Sequence[Question], asked: Sequence[Asked], keep_texts: bool
    ) -> FileResult:
        """Scores of all rows of a file, at least one; `asked` is what `asked` gives for them."""
        pairs = [(question, prompt) for question, prompt in zip(questions, asked, strict=True) for _ in self._seeds]
        seeds = [seed for _ in questions for seed in self._seeds]
        prompts = [
            Prompt(prompt.ids, question.row, seed) for (question, prompt), seed in zip(pairs, seeds, strict=True)
        ]
        responses = self._responses(name, prompts)
        texts = [self._text_of(response.ids) for response in responses]
        answers = [answer_of(text, prompt.thinking) for text, (_, prompt) in zip(texts, pairs, strict=True)]
        scored = [(answer.text, question.references) for answer, (question, _) in zip(answers, pairs, strict=True)]

        def by_row(values: Sequence[Any]) -> np.ndarray:
            return np.array(values, dtype=object).reshape(len(questions), len(self._seeds))

        scores = by_row([self._rouge.score(*pair) for pair in scored])
        matches = by_row([exact_match(*pair) for pair in scored])
        return FileResult(
            name=name,
            rows=len(questions),
            sha256=digest(questions),
            cut_prompts=sum(prompt.was_cut for prompt in asked),
            wordless=sum(all(map(self._rouge.is_blank, question.references)) for question in questions),
            rouge_l=Score.of(scores.mean(0).tolist()),
            exact_match=Score.of((100 * matches.mean(0)).tolist()),
            tokens=float(np.mean([len(response.ids) for response in responses])),
            stopped=float(np.mean([response.stopped for response in responses])),
            reasoned=float(np.mean([answer.reasoned for answer in answers])),
            unanswered=float(np.mean([not answer.finished for answer in answers])),
            row_numbers=tuple(question.row for question in questions),
            scores=tuple(map(tuple, scores.tolist())),
            matches=tuple(map(tuple, matches.tolist())),
            texts=tuple(map(tuple, by_row(texts).tolist())) if keep_texts else None,
        )

    def _responses(self, name: str, prompts: Sequence[Prompt]) -> list[Response]:
        """In the order of the prompts."""
        by_place: dict[int, Response] = {}
        with console.row_progress(name, len(prompts), self._quiet) as progress:
            for places in batches_by_length(prompts, self._batch_size):
                responses = responses_of([prompts[place] for place in places], self._generator, self._device)
                by_place |= dict(zip(places, responses, strict=True))
                progress.advance(len(places), sum(len(response.ids) for response in responses))
        return [by_place[place] for place in range(len(prompts))]


def default_device() -> str:
    """`cuda` if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
