"""How long a document a model can take: by its config, by its tables of positions, by where its rotary positions change."""

import re
from typing import Any, Final

from torch import nn

#: Names under which configs of transformers keep how long a document may be.
_LIMITS: Final = ("max_position_embeddings", "max_seq_len", "max_target_positions", "model_max_length", "n_positions")
#: How tables of learned absolute positions are called.
_POSITIONS: Final = re.compile(r"^(embed_positions|positions?_embeddings?|positions?_embed|pos_embed|wpe)$")


def longest_document(config: Any, body: nn.Module) -> int | None:
    """Tokens of the longest document that a model can take; None: no limit.

    Beyond it learned positions end, and scaled rotary positions would depend on the other documents of a batch.
    """
    named = (getattr(config, name, None) for name in _LIMITS)
    limit = next((value for value in named if isinstance(value, int)), None)
    if limit is not None:
        limit = min([limit, *_learned_positions(body, limit)])
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))):
        if rope.get("rope_type") == "longrope" and "original_max_position_embeddings" in rope:
            limit = int(rope["original_max_position_embeddings"])
    return limit


def _learned_positions(body: nn.Module, named: int) -> list[int]:
    """Tokens that tables of position embeddings reach to, of those with at least as many rows as the config names.

    RoBERTa and its kin count a row for padding, and those before it, among their positions.
    """
    tables = [module for name, module in body.named_modules() if _POSITIONS.search(name.rpartition(".")[2])]
    return [
        table.num_embeddings - (getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
        if isinstance(table, nn.Embedding) and table.num_embeddings >= named
    ]
