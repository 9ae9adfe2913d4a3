"""pytest-xdist hands out whole files, where it would hand out test by test what is in no group.

Processes that share a file each make what its tests share: models, datasets, caches. A marked group stays one.
"""

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """For `--dist=loadgroup`; None leaves others as they are."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling  # in the process that hands out, where there is xdist

    class WholeFiles(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            group = super()._split_scope(nodeid)
            return nodeid.partition("::")[0] if group == nodeid else group

    return WholeFiles(config, log)
