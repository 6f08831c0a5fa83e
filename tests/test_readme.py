"""What README.md and the pages say can be typed, runs; links between the pages lead somewhere."""

import re
from pathlib import Path

import pytest

from mixbit.app import main as cli

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def blocks(language, page="README.md"):
    text = (ROOT / page).read_text(encoding="utf-8")
    pairs = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in pairs if name == language]


def anchors(page):
    """The names under which headings of a page are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)(.*?)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        other = page.parent / name
        assert other.is_file(), link
        assert not anchor or anchor in anchors(other), link


def test_the_python_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 13
    exec(compile(example, "README.md", "exec"), {})
    assert "; matches" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.xml").exists()


def test_the_file_of_the_command_line_example_is_the_one_in_the_repository():
    (example,) = blocks("python", "docs/COMMANDS.md")
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
