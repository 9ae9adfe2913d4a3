"""Cross-entropy and perplexity of a model on the responses of a prepared dataset."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from schemas.errors import UserError
from trainer.batches.documents import Documents
from trainer.batches.tokenization import differing_row
from trainer.evaluation.results import HeldOutResult
from trainer.models.head import Head
from trainer.models.hidden_states import Forward, Request, batches_of
from trainer.models.loading import LanguageModel


def open_documents(folder: Path, limit: int | None, model: LanguageModel, tokenizer: Any) -> Documents:
    """The dataset's first `limit` rows, if the model can read its student's side.

    Raises `UserError` if that was made with another tokenizer (a few rows are tokenized again, and no id is beyond the
    model's vocabulary), if rows are too long for the model, or if no row has a response; `StateError` for
    a folder that is no finished dataset.
    """
    documents = Documents(folder, limit)
    remedy = "Give it the model's own with `mta-prep align DATASET --student MODEL`"
    if documents.largest_student_id >= model.vocab_size or differing_row(documents, tokenizer) is not None:
        raise UserError(f"{folder} was prepared with another student tokenizer than the model's. {remedy}.")
    longest = max(documents.lengths("student").tolist(), default=0)
    if model.max_length is not None and longest > model.max_length:
        raise UserError(
            f"{folder} has a row of {longest} tokens, and the model takes at most {model.max_length}. {remedy} "
            f"--max-length {model.max_length}."
        )
    return documents


def held_out_loss(model: LanguageModel, documents: Documents, token_budget: int = 4096) -> HeldOutResult:
    """Mean of −log p(token | all before it) over the response tokens, of every turn that is learnt, the tokens that end a
    turn or the text included; float32 sums in float64.

    A text without a prompt is a response from its second token on. Documents run packed, about `token_budget` tokens at
    a time, and logits exist for some positions at a time. Raises `UserError` for a loss that is no finite number.
    """
    forward = Forward(model, Request(final=True), int(documents.lengths("student").max(initial=1)))
    assert forward.head is not None
    total, tokens = 0.0, 0
    for rows in batches_of(documents.lengths("student"), token_budget):
        batch = documents.batch(np.array(sorted(rows), dtype=np.int64))
        captured = forward(np.split(batch.ids.numpy(), batch.rows[1:-1].tolist()))
        assert captured.final is not None
        states = captured.final[batch.positions.to(captured.final.device)]
        total += float(losses(forward.head, states, batch.targets.to(states.device)).double().sum())
        tokens += len(batch.targets)
    if tokens == 0:
        raise UserError(f"{documents.folder} has no response tokens to predict.")
    loss = total / tokens
    if not math.isfinite(loss):
        raise UserError(
            f"The loss of {documents.folder} is {loss}: the model's weights or logits are no finite numbers."
        )
    return HeldOutResult(
        dataset=documents.folder.resolve().name,
        fingerprint=documents.manifest.fingerprint,
        rows=len(documents),
        tokens=tokens,
        loss=loss,
        # beyond what a float holds it says no more than the loss does
        perplexity=math.exp(min(loss, 700.0)),
    )


@torch.no_grad()
def losses(
    head: Head, states: Float[Tensor, "positions hidden"], targets: Int64[Tensor, " positions"]
) -> Float[Tensor, " positions"]:
    """−log p(target) at each position, in float32; logits of some at a time."""
    values = torch.empty(len(states), device=states.device)
    for part in head.portions(len(states)):
        values[part] = F.cross_entropy(head.logits(states[part]).float(), targets[part], reduction="none")
    return values
