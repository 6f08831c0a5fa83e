"""What the pages say can be typed, runs, and prints what they say; see `tests.pages`."""

import re

import pytest

from tests.pages import NUMBER, PAGES, ROOT, assert_printed, blocks_of, run_page

#: Pages that take longest, which `make slow` runs.
SLOW = (
    "docs/PRUNING.md", "docs/ROUNDINGS.md", "docs/SCHEMES.md", "docs/troubleshooting.md",
    *(f"docs/how-to/{name}.md" for name in (
        "cnn", "detector", "encoder", "language-model", "latency", "metric", "nncf", "onnx", "other-tools", "sweep",
        "training",
    )),
)  # fmt: skip
LANGUAGES = {"python", "bash", "output", "json", "text", "toml", "diff", "cpp"}


def by_name(page):
    name = str(page.relative_to(ROOT))
    return pytest.param(page, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")  # torch.onnx.export of torch 2.13
@pytest.mark.parametrize("page", [by_name(page) for page in PAGES if blocks_of(page)])
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_has_a_language_so_that_none_is_left_out(page):
    blocks = blocks_of(page)
    assert {block.language for block in blocks} <= LANGUAGES
    fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == 2 * len(blocks)
    commands = re.findall(r"^    (?:mixbit|python|pip|make) .*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not commands, "commands stand between fences"


def test_a_text_that_is_not_what_was_printed_is_told():
    assert_printed("loss 0.25, ... done", "loss 0.31, 3 layers\n  and more done\n", "here")
    with pytest.raises(AssertionError, match="here shows"):
        assert_printed("loss 0.25, 3 layers", "loss 0.31, 4 layers", "here")
    assert_printed("w4a8: 3 layers", "w6a8: 12 layers", "here", NUMBER)
    with pytest.raises(AssertionError, match="here shows"):
        assert_printed("w4a8: 3 layers", "w6a8: 12 plans", "here", NUMBER)
    with pytest.raises(AssertionError, match="here shows"):
        assert_printed("loss 0.25", "loss 0.31 and more", "here")


def test_a_block_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, message in (
        ("```bash\nrm -rf x\n```\n", "no test runs 'rm'"),
        ("```bash\nmixbit list nothing\n```\n", "mixbit list nothing"),
        ("```bash\nmake nothing\n```\n", "make nothing"),
        ("```bash\npip install 'mixbit[nothing]'\n```\n", "no such extra"),
        ("```python\nprint(1)\n```\n```output\n2\n```\n", "shows"),
    ):
        page = ROOT / "docs" / "index.md"
        monkeypatch.setattr("tests.pages.blocks_of", lambda page, text=text: _blocks(text, tmp_path))
        with pytest.raises(AssertionError, match=message):
            run_page(page)


def _blocks(text, folder):
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return blocks_of(page)
