"""Datasets of the sample as the trainer meets them."""

import pytest


@pytest.fixture(scope="session")
def aligned(prepared, tmp_path_factory):
    """The sample for another student than caches of it were made beside; its limit cuts long rows, and drops none."""
    from datasets import load_from_disk

    from pipeline.dataset.realign import realign

    out = tmp_path_factory.mktemp("aligned") / "out"
    longest_prompt = max(load_from_disk(str(prepared))["teacher_response_start"])
    sides = {"student": {"tokenizer": "embedded:sentencepiece-bpe", "max_length": longest_prompt + 3}}
    realign(prepared, out, sides, None, workers=1, overwrite=False, quiet=True)
    return out
