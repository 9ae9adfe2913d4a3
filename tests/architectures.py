"""What is made of every causal architecture of transformers, seen on a tiny model of each with random weights.

python tests/architectures.py [KIND …] prints the table of docs/architectures.md, or some of its lines; and,
to stderr, how far each is from the plain model.
"""

import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from jaxtyping import Int64
from torch import Tensor

import zoo
from schemas.config import ModelConfig
from schemas.errors import UserError
from trainer.models.hidden_states import Forward, Request
from trainer.models.hub import first_line
from trainer.models.loading import LanguageModel, UnknownLogits, load_model

#: Documents of a batch: of one token, within and past every window, and past the queries that are attended to at once.
LENGTHS: Final = (13, 1, 300, 40, 29)
#: The one that is alone in its batch, where the model takes so many.
ALONE: Final = 600
#: By what weights are enlarged, so that attention is far from uniform.
GAIN: Final = 4
HEAD: Final = "| Architecture | Config | Documents run | `final`, `topk` | Why not |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Outcome:
    """What was seen of an architecture."""

    kind: str  # `model_type` of its config
    architecture: str
    run: str  # packed, padded, refused, or not tried
    logits: bool  # whether a cache can have them
    reason: str  # for what it does not do
    error: float  # of all hidden states and logits, against the plain model's for each document alone; relative

    def __str__(self) -> str:
        """Its line of the table."""
        cells = (self.architecture, f"`{self.kind}`", self.run, "yes" if self.logits else "no", self.reason)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def outcome(kind: str) -> Outcome:
    """Build it, save it, load it as a teacher and run it on batches, beside the plain model."""
    architecture = zoo.kinds()[kind]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the library's own
        try:
            plain = _saved(kind, Path(folder))
        except Exception as error:  # what a config or model makes of small sizes is the library's affair
            reason = f"no tiny model of its config: {type(error).__name__}"
            return Outcome(kind, architecture, "not tried", False, reason, 0.0)
        try:
            return _compared(kind, plain, load_model(ModelConfig(model=folder, dtype="float32"), None))
        except UserError as error:
            return Outcome(kind, architecture, "refused", False, _reason(error, architecture), 0.0)


def _saved(kind: str, folder: Path) -> Any:
    """A tiny model that runs, after a round trip through its files."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(zoo.tiny(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(GAIN)
    model.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _run(model, *_documents(LENGTHS[-1:]))
    return model
    return model


def _compared(kind: str, plain: Any, teacher: LanguageModel) -> Outcome:
    layers = tuple(range(teacher.depth + 1))
    reason = ""
    try:
        forward = Forward(teacher, Request(layers=layers, final=True))
    except UnknownLogits as error:
        reason = _reason(error, teacher.architecture)
        forward = Forward(teacher, Request(layers=layers))
    error = 0.0
    for lengths in (LENGTHS, (min(teacher.max_length or ALONE, ALONE),)):
        documents = _documents(lengths)
        captured = forward(documents)
        for document, first, last in zip(documents, captured.rows, captured.rows[1:], strict=False):
            output = _run(plain, document)
            for layer in layers:
                error = max(error, _error(captured.states[layer][first:last], output.hidden_states[layer][0]))
            if forward.head is not None and captured.final is not None:
                error = max(error, _error(forward.head.logits(captured.final[first:last]), output.logits[0]))
    run = "packed" if forward.packed else "padded"
    return Outcome(kind, teacher.architecture, run, forward.head is not None, reason, error)


@torch.no_grad()
def _run(model: Any, document: Int64[np.ndarray, " tokens"]) -> Any:
    return model(input_ids=torch.from_numpy(document)[None], use_cache=False, output_hidden_states=True)


def _error(values: Tensor, expected: Tensor) -> float:
    """Relative to the largest value."""
    return float((values - expected).abs().max() / expected.abs().max())


def _documents(lengths: tuple[int, ...]) -> list[Int64[np.ndarray, " tokens"]]:
    random = np.random.default_rng(0)
    return [random.integers(3, zoo.VOCABULARY, length) for length in lengths]


def _reason(error: UserError, architecture: str) -> str:
    """The first clause of a message, without the model's name."""
    sentence = first_line(error).rpartition(f"({architecture}) ")[2]
    return sentence.partition("; ")[0].partition(", so ")[0].partition(" Choose")[0].rstrip(".")


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(HEAD)
    for kind in sys.argv[1:] or zoo.kinds():
        seen = outcome(kind)
        print(seen, flush=True)
        print(f"{kind}: {seen.error:.1e}", file=sys.stderr)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
