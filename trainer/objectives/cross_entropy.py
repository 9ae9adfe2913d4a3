"""Cross-entropy: −log q(target) at each position, q the student's distribution of the next token."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainer.objectives.base import LogitObjective, Logits


class CrossEntropy(LogitObjective):
    """What plain fine-tuning minimises; needs nothing of the teacher."""

    def per_token(self, logits: Logits) -> Float[Tensor, " positions"]:
        """−log q(target)."""
        return F.nll_loss(logits.student_logprobs, logits.targets, reduction="none")
