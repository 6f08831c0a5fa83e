"""The fenced blocks of a page, and a shell small enough to run them inside the test.

A page's blocks run from top to bottom in an empty folder that has `examples/` of the repository in it:

- `python` runs, all blocks of a page in one namespace; with `title="cnn.py"` it is written to that file instead;
- `bash` runs command by command; a command that must fail ends in `# exits with 4`;
- `output` is what the block before printed: on standard error where it failed or printed nothing else. `...` stands for
  anything, a number with a point for any number, and line breaks may lie elsewhere. With a title, which says on which
  machine it was printed, whole numbers too stand for any: plans differ by processor;
- `json` with a title is written to that file, and all `json` is parsed. Other blocks are not run.
"""

import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from mixbit.app import main as cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)
#: A number with a point, and any number.
FIGURE, NUMBER = re.compile(r"\d[\d,]*\.\d+(?:e-?\d+)?"), re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Block:
    """What stands between two fences; `title` is empty where there is none, `line` is that of the first fence."""

    language: str
    title: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text, blocks = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        indent, language, rest, body = match.groups()
        title = re.search(r'title="(.*?)"', rest)
        lines = [line.removeprefix(indent) for line in body.splitlines(keepends=True)]
        number = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(language, title.group(1) if title else "", "".join(lines), number))
    return blocks


def run_page(page: Path) -> None:
    """Run the blocks of a page in the current folder; an error names the line of the page."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(page):
        place = f"{page.relative_to(ROOT)}:{block.line}"
        if block.language == "output":
            assert_printed(block.text, printed, place, any_number=NUMBER if block.title else FIGURE)
        elif block.title:
            assert_same_as_in_the_repository(block, place)
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            printed = printed_by(lambda code=code: exec(code, names))[0]
        elif block.language == "bash":
            printed = "".join(run_command(command, place) for command in commands_of(block.text))
        if block.language == "json":
            json.loads(block.text)


def assert_same_as_in_the_repository(block: Block, place: str) -> None:
    """A file of the repository that a page shows is shown as it is."""
    path = ROOT / block.title
    if path.is_file():
        assert block.text == path.read_text(encoding="utf-8"), place


def printed_by(function) -> tuple[str, int]:
    """What a function prints, on standard error where it fails or prints nothing else, and the code it exits with."""
    out, error, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(error):
        try:
            function()
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
            if isinstance(stopped.code, str):
                error.write(stopped.code)
    return error.getvalue() if status else out.getvalue() or error.getvalue(), status


def commands_of(text: str) -> list[str]:
    """The lines of a shell block, those that go on with a backslash joined, without comments alone in a line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_command(command: str, place: str) -> str:
    """Run one command, see that it exits as it should, and return what it prints."""
    words = shlex.split(command, comments=True)
    wanted = re.search(r"# exits with (\d+)", command)
    run = RUNNERS.get(words[0])
    assert run is not None, f"{place}: no test runs {words[0]!r}"
    printed, status = printed_by(lambda: run(words))
    assert status == (int(wanted.group(1)) if wanted else 0), f"{place}: {command}\n{printed}"
    return printed


def _mixbit(words: list[str]) -> None:
    before, sys.argv = sys.argv, words
    try:
        cli.main()
    finally:
        sys.argv = before


def _python(words: list[str]) -> None:
    before, sys.argv = sys.argv, words[2:] if words[1] == "-m" else words[1:]
    try:
        run = runpy.run_module if words[1] == "-m" else runpy.run_path
        run(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before


def _make(words: list[str]) -> None:
    """See that the Makefile has the target; running it would run these tests again."""
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    sys.exit(done.returncode)


def _pip(words: list[str]) -> None:
    """See that the extras exist; the network is not for tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for word in words for name in re.findall(r"\[(.*?)\]", word)]
    unknown = {name for group in extras for name in group.split(",")} - set(project["optional-dependencies"])
    sys.exit(f"no such extra: {unknown}" if unknown else 0)


def _pytest(words: list[str]) -> None:
    """See that the test files exist."""
    sys.exit(not all((ROOT / word).exists() for word in words[1:] if word.endswith(".py")))


def _cat(words: list[str]) -> None:
    print(Path(words[1]).read_text(encoding="utf-8"))


def _ls(words: list[str]) -> None:
    print(*sorted(path.name for path in Path(words[1]).iterdir()))


RUNNERS = {"mixbit": _mixbit, "python": _python, "make": _make, "pip": _pip, "pytest": _pytest, "cat": _cat, "ls": _ls}


def assert_printed(expected: str, printed: str, place: str, any_number: re.Pattern[str] = FIGURE) -> None:
    """Compare a text with what was printed: words exactly, `...` with anything, such numbers with any of the kind."""
    parts = [re.escape(" ".join(any_number.sub("FIGURE", part).split())) for part in expected.split("...")]
    pattern = r"\s*.*?\s*".join(parts).replace("FIGURE", any_number.pattern).replace(r"\ ", r"\s+")
    is_same = re.fullmatch(pattern, " ".join(printed.split()), flags=re.DOTALL)
    assert is_same, f"{place} shows\n{expected}\nnot\n{printed}"
