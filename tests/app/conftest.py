"""How tests call the command line."""

import sys

import pytest

from mixbit.app import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `mixbit WORDS`; return exit code, standard output and standard error."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mixbit", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call
