"""The evaluation as tests call it."""

import sys

import pytest

from trainer import evaluate


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        return stopped.value.code, *capsys.readouterr()

    return call
