"""How far a model is from the teacher and from the references, row by row, without sampling; and ROUGE-L of its responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from schemas.config import ModelConfig
from trainer.batches.documents import Documents
from trainer.maths.divergence import forward_kl, reverse_kl
from trainer.maths.ragged import spread
from trainer.models.head import Head
from trainer.models.hidden_states import Forward, Request, batches_of
from trainer.models.loading import load_model
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.teacher.needs import TeacherNeeds

_TOKENS_AT_ONCE: Final = 8192
_DIGITS: Final = 4  # of a row's sum, in nats

Losses = dict[str, list[float]]  # by measure: sums over the response tokens of each row; `tokens`: how many those are


def losses(model: Path | str, device: str, tests: Sequence[tuple[Path, Path | None]]) -> list[Losses]:
    """Of a model on prepared test sets; with a cache of the teacher's last states, also the divergences from the teacher.

    `ce` is −Σ log q(next token), `kl` Σ KL(p ‖ q), `reverse_kl` Σ KL(q ‖ p), p the teacher, q the model.
    """
    loaded = load_model(ModelConfig(model=str(model), device=device, dtype="float32"), None, "model")
    documents = [Documents(dataset) for dataset, _ in tests]
    forward = Forward(loaded, Request(final=True), max(int(each.lengths("student").max()) for each in documents))
    return [_of_rows(forward, mine, cache) for mine, (_, cache) in zip(documents, tests, strict=True)]


@torch.no_grad()
def _of_rows(forward: Forward, documents: Documents, cache: Path | None) -> Losses:
    teacher = None if cache is None else CachedTeacher(Caches([cache], documents), TeacherNeeds(final=True))
    device = forward.teacher.device
    head = None if teacher is None else teacher.head.to(device)
    names = ["ce", "kl", "reverse_kl"] if head is not None else ["ce"]
    sums = {name: np.zeros(len(documents)) for name in names}
    tokens = np.zeros(len(documents), dtype=np.int64)
    for rows in batches_of(documents.lengths("student"), _TOKENS_AT_ONCE):
        chosen = np.array(sorted(rows), dtype=np.int64)
        batch = documents.batch(chosen) if teacher is None else teacher.fetch(chosen.tolist())
        captured = forward(np.split(batch.ids.numpy(), batch.rows[1:-1].tolist()))
        assert captured.final is not None
        assert forward.head is not None
        states = captured.final[batch.positions.to(captured.final.device)]
        theirs = None if batch.final is None else batch.final.to(device)
        values = _per_token(forward.head, states, batch.targets.to(device), head, theirs)
        place = spread(torch.arange(len(chosen)), batch.position_rows)
        for name in names:
            of_rows = torch.zeros(len(chosen), dtype=torch.float64).index_add_(0, place, values[name].double().cpu())
            sums[name][chosen] = of_rows.numpy()
        tokens[chosen] = batch.position_rows.diff().numpy()
    return {name: [round(value, _DIGITS) for value in sums[name].tolist()] for name in names} | {
        "tokens": tokens.tolist()
    }


def _per_token(
    head: Head, states: Tensor, targets: Tensor, teacher_head: Head | None, teacher_states: Tensor | None
) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"ce": [], "kl": [], "reverse_kl": []}
    for part in head.portions(len(states), matrices=2):
        log_q = head.logits(states[part]).float().log_softmax(1)
        parts["ce"].append(-log_q.gather(1, targets[part][:, None]).squeeze(1))
        if teacher_head is not None and teacher_states is not None:
            log_p = teacher_head.logits(teacher_states[part]).float().log_softmax(1)
            parts["kl"].append(forward_kl(log_q, log_p)[0])
            parts["reverse_kl"].append(reverse_kl(log_q, log_p)[0])
    return {name: torch.cat(values) for name, values in parts.items() if values}


def rouge(
    model: Path | str, device: str, rows: Path, lengths: tuple[int, int], batch_size: int, draws: int
) -> dict[str, dict[str, Any]]:
    """ROUGE-L of responses to a file of test rows: the `greedy` one of each, and `draws` of each `sampled` at temperature 1."""
    # what scores responses is not needed for anything else
    from trainer.evaluation.generate import Sampling
    from trainer.evaluation.questions import Reading, read_questions
    from trainer.evaluation.responses import Evaluation, load

    loaded = load(ModelConfig(model=str(model), device=device, dtype="float32"))
    questions = read_questions(rows, 0, None, Reading(False, False, False))
    kinds: dict[str, dict[str, Any]] = {}
    for kind, seeds in (("greedy", [None]), ("sampled", [*range(10, 10 * draws + 1, 10)])):
        if seeds:
            evaluation = Evaluation(loaded, seeds, Sampling(), *lengths, batch_size, quiet=True)
            result = evaluation.file_result(rows.stem, questions, evaluation.asked(questions), keep_texts=False)
            kinds[kind] = {
                "rouge_l": [[round(score, 3) for score in of_row] for of_row in result.scores],
                "tokens": round(result.tokens, 2),
                "stopped": round(result.stopped, 4),
            }
    return kinds
