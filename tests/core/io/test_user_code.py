"""The user's functions for other processes: by file and name, however often their file was imported."""

import functools
import os
import pickle
import subprocess
import sys

import pytest

from mixbit.core.io.user_code import load_function, pickled

FILE = """
class Scale:
    by = 3

    @staticmethod
    def times(x):
        return Scale.by * x

def double(x):
    return 2 * x
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "code_of_mine.py"
    path.write_text(FILE)
    return path


def test_functions_of_a_file_that_was_imported_again_arrive(file):
    double, scale = load_function(f"{file}:double", "F"), load_function(f"{file}:Scale", "F")
    sent = pickled(functools.partial(double, x=4)), pickled((scale, scale.times))
    assert pickle.loads(sent[0])() == 8
    assert pickle.loads(sent[1])[1](5) == 15
    again = load_function(f"{file}:double", "F")
    with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(double)
    assert pickle.loads(pickled(double)) is again
    script = f"import pickle; print(pickle.loads({sent[0]!r})(), pickle.loads({sent[1]!r})[1](5))"
    words = [sys.executable, "-c", script]
    assert subprocess.run(words, check=True, capture_output=True, text=True, cwd="/").stdout == "8 15\n"


def test_files_of_one_name_are_told_apart(file, tmp_path):
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_text("def double(x):\n    return 20 * x\n")
    one, two = load_function(f"{file}:double", "F"), load_function(f"{other}:double", "F")
    assert [pickle.loads(pickled(function))(1) for function in (one, two, one)] == [2, 20, 2]


def test_what_has_no_name_is_refused_as_ever(file):
    file.write_text("def made():\n    return lambda x: x\nlocal = made()\n")
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickled(load_function(f"{file}:local", "F"))


def test_a_file_that_changed_within_the_same_second_is_read_again(file, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for factor in (2, 3):
        file.write_text(FILE.replace("2 * x", f"{factor} * x"))
        os.utime(file, (1e9, 1e9))
        assert load_function(f"{file}:double", "F")(5) == 5 * factor
    assert [path.name for path in file.parent.iterdir()] == [file.name]
