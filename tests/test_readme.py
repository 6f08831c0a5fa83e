"""What README.md says can be typed, runs."""

import re
from pathlib import Path

import pytest

from mixbit.app import main as cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_the_python_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example, _ = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 12
    exec(compile(example, "README.md", "exec"), {})
    assert "; matches" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.xml").exists()


def test_the_file_of_the_command_line_example_is_the_one_in_the_repository():
    _, example = blocks("python")
    assert example == (ROOT / "examples" / "digits.py").read_text(encoding="utf-8")


def test_the_command_line_example_runs_as_it_stands(tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (commands,) = [block for block in blocks("") if block.startswith("mixbit quantize")]
    for line in commands.replace("\\\n", " ").splitlines():
        words = line.partition("#")[0].split()
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, line
    assert (tmp_path / "small" / "model.onnx").exists()
