"""Terms built for a run: where neither it nor they name layers, those of the caches that have their signals."""

import pytest

from cached_batches import TOP
from schemas.errors import UsageError
from schemas.training import DEFAULT_DATA, TrainConfig
from trainer.batches.documents import Documents
from trainer.teacher.cached import CachedTeacher
from trainer.teacher.caches import Caches
from trainer.terms import needs_of, terms_of


@pytest.fixture
def layers_of(same, student_of_three):
    """Teacher layers of each term on some caches, which then can be read."""

    def of(caches, objectives):
        config = {"student": {"model": "m"}, "data": {"dataset": "d", "caches": ["c"]}, "steps": 1, "out": "o"}
        config = TrainConfig.parse(config | {"objectives": objectives}, "test")
        datasets = {DEFAULT_DATA: Caches(caches, Documents(same))}
        terms = terms_of(config, student_of_three(), datasets)
        CachedTeacher(datasets[DEFAULT_DATA], needs_of(config, terms, datasets)[DEFAULT_DATA]).fetch([0])
        return {name: [pair.teacher for pair in term.pairs] for name, term in terms.items()}

    return of


def test_each_takes_the_layers_whose_signals_are_there(make_cache, layers_of):
    chunks = make_cache(**TOP)
    words = make_cache(layers=[{"layer": 2, "granularity": "words"}], signals=["states"])
    assert layers_of([chunks, words], {"dsa": {}, "hidden": {}}) == {"dsa": [4], "hidden": [2]}
    both = make_cache(signals=["relations", "states"])
    assert layers_of([words, both], {"dsa": {}, "hidden": {}}) == {"dsa": [2, 4], "hidden": [2, 4]}
    with pytest.raises(UsageError, match=r"has the signal `relations`.*`mta-prep cache-teacher "):
        layers_of([words], {"dsa": {}})
