"""Preparing with a stage that is loaded once, where it is the writing of a run that is looked at."""

import pytest

from pipeline.dataset import prepare as preparing

_MAKE = preparing.PrepareStage
_MADE = {}


def kept_stage(config):
    """The stage of a config, loaded once; by its name also in workers, which get it pickled."""
    key = config.to_yaml()
    _MADE[key] = _MADE.get(key) or _MAKE(config)
    return _MADE[key]


@pytest.fixture(scope="module")
def one_stage():
    """Every run of a config in this process, and in its forks, has the same stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "PrepareStage", kept_stage)
        yield
    _MADE.clear()
