"""Input embeddings: a lookup by token id, of all tokens or of some, and never of one that is not there."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from trainer.models.embeddings import Embeddings
from trainer.models.loading import embedding_matrix

VOCABULARY = 20
MATRIX = torch.randn(VOCABULARY, 3, generator=torch.Generator().manual_seed(0))
TOKENS = st.integers(-3, VOCABULARY + 3)


@given(st.lists(st.integers(0, VOCABULARY - 1), unique=True).map(sorted), st.lists(TOKENS))
def test_some_rows_are_the_whole_matrix_at_those_tokens(present, asked):
    every = Embeddings(MATRIX)
    some = every.of(torch.tensor(present, dtype=torch.int64))
    assert len(some.weight) == len(present)
    ids = torch.tensor(asked, dtype=torch.int64)
    for embeddings, known in ((some, set(present)), (every, set(range(VOCABULARY)))):
        missing = [token for token in asked if token not in known]
        if missing:
            with pytest.raises(ValueError, match=rf"^token {missing[0]} has no row in the {len(known)} rows"):
                embeddings(ids)
        else:
            assert torch.equal(embeddings(ids), MATRIX[ids])


def test_on_a_device():
    moved = Embeddings(MATRIX[:2], torch.tensor([3, 5])).to(torch.device("meta"))
    assert moved.weight.is_meta
    assert moved.ids.is_meta
    assert Embeddings(MATRIX).to(torch.device("cpu")).ids is None


def test_a_model_without_a_matrix():
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1
        )
    )
    assert embedding_matrix(model) is model.model.embed_tokens.weight
    model.model.embed_tokens = torch.nn.Identity()
    with pytest.raises(UserError, match=r"\(LlamaForCausalLM\) has no plain matrix of input embeddings"):
        embedding_matrix(model)
