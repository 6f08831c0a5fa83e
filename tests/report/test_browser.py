"""report.html in Chromium, where it, playwright and axe-core are installed: `make slow`.

The program is `chromium` on the path; axe.min.js is the file in MIXBIT_AXE, or that of the package axe-core-python.
Screenshots go to the folder in MIXBIT_SHOTS; MIXBIT_REPORT is a page to look at beside the tests' own.
"""

import dataclasses
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mixbit.report.report import rewrite_report
from tests.report.folders import table_of as random_table, write_folder
from tests.report.pages import number_of
from tests.report.test_report import NAMES

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
WIDTHS, THEMES = (390, 1280), ("light", "dark")


#: What the focus is on: its name, its outline, its tag.
FOCUSED = """() => {
  const it = document.activeElement;
  const name = it.id || it.getAttribute("aria-label") || it.textContent.trim();
  return [name, getComputedStyle(it).outlineStyle, it.tagName];
}"""
#: Of all rows, what a column is sorted by.
CELLS = "(rows, column) => rows.map(({cells}) => cells[column].dataset.sort ?? cells[column].textContent)"


@pytest.fixture(scope="module")
def table():
    """Twelve layers, timed."""
    table = random_table([f"stage{index // 4}.block{index % 4}.conv.weight" for index in range(12)])
    return dataclasses.replace(table, usage=table.usage | {"latency_ms": table.usage["weight_bytes"] / 1e4})


@pytest.fixture(scope="module")
def ours(table, tmp_path_factory):
    uniform = [
        {"scheme": f"w{bits}a8", "accuracy": 0.5, "divergence": 0.4 / bits, "predicted_bytes": size}
        for bits, size in zip((2, 4), table.usage["weight_bytes"].sum(axis=0).tolist(), strict=False)
    ]
    outputs = {"logits": {"float": [(3, 0.75), (1, 0.25)], "deployed": [(1, 0.5), (3, 0.5)]}, "boxes": {"distance": 2}}
    folder = tmp_path_factory.mktemp("browser") / "out"
    write_folder(
        folder,
        table,
        uniform=uniform,
        problems=[],
        latency_ratio={"value": 0.5, "low": 0.45, "high": 0.55},
        uncovered=[{"name": "bias", "kind": "parameter", "reason": "added by layers", "weight_bytes": 64}],
        command=["mixbit", "quantize", "net.py:model", "--budget", "mean_bits=4"],
        changed=[{"sample": 3, "label": 1, "divergence": 0.5, "outputs": outputs}],
    )
    return rewrite_report(folder)


@pytest.fixture(scope="module")
def reports(ours):
    other = os.environ.get("MIXBIT_REPORT")
    return [ours] if other is None else [ours, Path(other)]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Open a page; when the test ends, nothing was loaded but the page, and nothing went to the console."""
    contexts, said, loaded = [], [], []

    def open_page(path, width=1280, theme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **options)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(path.absolute().as_uri())
        contexts.append(context)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in loaded if not url.startswith("data:")] == [url for url in loaded if url.endswith(".html")]


def figures_of(page):
    """What the page says of the plan at the slider."""
    names = ("bytes", "ratio", "bits", "same", "loss", "interval", "latency", "command")
    return {name: page.locator(f"#now-{name}").text_content() for name in names}


def assert_figures_are_of_the_point(page, table):
    """Every figure at the slider is the sum over the table of the choices that the bars show."""
    figures, heights = figures_of(page), page.locator("#bits-now").get_attribute("d").split("M")[1:]
    bits = [round(float(bar.split("v-")[1].split("h")[0]) / 10) for bar in heights]
    columns = [{2: 0, 4: 1, 8: 2}[each] for each in bits]
    rows = np.arange(len(columns))
    size, loss = table.usage["weight_bytes"][rows, columns].sum(), table.loss[rows, columns].sum()
    away = 1.96 * np.sqrt(np.square(table.standard_error[rows, columns]).sum())
    assert figures["bytes"] == f"{size:,.0f} bytes"
    assert figures["ratio"] == f"{100 * size / (4 * table.numel.sum()):.2f} % of float32"
    assert float(figures["bits"]) == pytest.approx((table.numel * bits).sum() / table.numel.sum(), abs=0.006)
    assert figures["same"] == f"{sum(each == 4 for each in bits)} of 12 layers as deployed"
    assert number_of(figures["loss"]) == pytest.approx(loss, rel=5e-3)
    ends = [number_of(end) for end in figures["interval"].split(" to ")]
    assert ends == pytest.approx([loss - away, loss + away], rel=6e-3)
    assert figures["latency"] == f"{size / 1e4:.3f} ms"
    assert f"weight_bytes={size:.0f} " in figures["command"]
    return size, loss


def test_the_slider_shows_every_plan_and_its_price(opened, ours, table):
    page = opened(ours)
    page.locator("#slider").focus()
    seen = []
    for key in ("Home", *["ArrowRight"] * 5, "PageUp", "End", "ArrowLeft", "PageDown"):
        page.keyboard.press(key)
        place = page.locator("#now").evaluate("now => [now.style.left, now.style.top]")
        seen.append((*assert_figures_are_of_the_point(page, table), *place))
    assert len(set(seen)) == len(seen), "each key moves to another plan, and the point on the chart with it"
    sizes = [size for size, *_ in seen]
    assert sizes[:6] == sorted(sizes[:6])
    assert sizes[0] == table.usage["weight_bytes"][:, 0].sum()
    assert sizes[7] == table.usage["weight_bytes"][:, 2].sum()
    page.locator("#back").click()
    deployed = table.usage["weight_bytes"][:, 1].sum()
    assert abs(assert_figures_are_of_the_point(page, table)[0] / deployed - 1) < 0.05
    page.locator("#bits").hover(position={"x": 5, "y": 50})
    assert page.locator("#bits-at").text_content().startswith("1 · stage0.block0.conv.weight: w")


def test_tables_sort_by_every_column(opened, ours):
    page = opened(ours)
    rows = page.locator("table.sortable tbody tr")
    count = page.locator("table.sortable thead button").count()
    assert count == 8
    for column in range(count):
        head = page.locator("table.sortable thead th").nth(column)
        orders = []
        for way in ("ascending", "descending"):
            head.locator("button").click()
            if head.get_attribute("aria-sort") != way:  # it was sorted so before
                head.locator("button").click()
            assert page.locator("th[aria-sort]").count() == 1
            cells = rows.evaluate_all(CELLS, column)
            try:
                keys = [float(cell) for cell in cells]
            except ValueError:
                keys = cells
            orders.append(keys)
            assert keys == sorted(keys, reverse=way == "descending")
        assert len(orders[0]) == 12


def test_all_can_be_done_by_keyboard(opened, ours):
    page = opened(ours)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused[2] == "BODY":
            break
        assert focused[1] != "none", f"{focused[0]}: no outline where the focus is"
        reached.append(focused[0])
    assert {"theme", "slider", "back", "Layers", "layer", "bytes", "executed"} <= set(reached)
    page.locator("#theme").focus()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.get_by_role("button", name="bytes").focus()
    page.keyboard.press("Space")
    assert page.locator("th[aria-sort]").text_content().strip() == "bytes"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_and_nothing_overflows(opened, reports, theme, width):
    if (place := os.environ.get("MIXBIT_AXE")) is None:
        if (package := find_spec("axe_core_python")) is None:
            pytest.skip("needs axe-core")
        place = Path(package.origin).with_name("axe.min.js")
    for number, report in enumerate(reports):
        page = opened(report, width, theme)
        page.evaluate(Path(place).read_text(encoding="utf-8"))
        found = page.evaluate("axe.run({resultTypes: ['violations', 'incomplete']})")
        problems = [
            f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
            for each in found["violations"]
            for node in each["nodes"]
        ]
        assert problems == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        if shots := os.environ.get("MIXBIT_SHOTS"):
            page.screenshot(path=Path(shots) / f"report{number}-{width}-{theme}.png", full_page=True)


def test_the_switch_has_what_the_system_has_as_a_start(opened, ours):
    colours = {}
    for theme in THEMES:
        page = opened(ours, theme=theme)
        colours[theme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        colours[f"not {theme}"] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours["light"] == colours["not dark"]
    assert colours["dark"] == colours["not light"]
    assert colours["light"] != colours["dark"]


def test_without_scripts_and_on_paper_all_figures_are_there(opened, ours):
    page = opened(ours, java_script_enabled=False)
    assert not page.locator("#slider").is_visible()
    assert page.locator("table.sortable tbody tr").count() == 12
    assert page.locator(".chart .mark").count() == 3
    printed = opened(ours, theme="dark")
    printed.emulate_media(media="print", color_scheme="dark")
    assert not printed.locator("#slider").is_visible()
    assert not printed.locator("#theme").is_visible()
    assert printed.locator("#bits").is_visible()
    assert printed.locator("table.sortable thead button").first.is_visible()
    assert printed.evaluate("getComputedStyle(document.body).color") == "rgb(28, 28, 26)"


def test_names_of_layers_are_only_shown(opened, tmp_path):
    write_folder(tmp_path / "out", random_table(NAMES), model=NAMES[1], chosen=NAMES[0])
    page = opened(rewrite_report(tmp_path / "out"))
    assert page.locator("img").count() == 0
    page.locator("#bits").hover(position={"x": 5, "y": 50})
    assert NAMES[0] in page.locator("#bits-at").text_content()


def test_a_strict_parser_of_html_finds_no_error(reports):
    html5lib = pytest.importorskip("html5lib")
    for report in reports:
        html5lib.HTMLParser(strict=True).parse(report.read_text(encoding="utf-8"))
