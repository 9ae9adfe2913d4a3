"""Shared by all tests: no network, one hypothesis profile, the embedded parser loaded once."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "project", deadline=None, max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def embedded_parser():
    """The embedded model, loaded once a process."""
    from pipeline.parse import model

    return model.load("embedded")
