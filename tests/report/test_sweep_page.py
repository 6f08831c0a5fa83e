"""The page of a sweep: what it shows of cells without accuracy, without results, and with texts that are no texts."""

import re

import pytest

from mixbit.report.sweep import sweep_page_of
from mixbit.results.sweep import Sweep, SweepCell
from tests.report.pages import read_page


def cell(number, **figures):
    target = f"target{number % 2}"
    budget = f"mean_bits={number + 2}"
    return SweepCell(
        model="net",
        target=target,
        budget=budget,
        rounding="nearest",
        folder=f"net/{target}/{budget}-nearest",
        **figures,
    )


def done(number, weight_bytes, **figures):
    return cell(number, state="done", weight_bytes=weight_bytes, schemes={"w4a8": 3}, chosen="it is best", **figures)


def page_of(*cells):
    sweep = Sweep(settings={"metric": "fisher", "fast": False}, models={"net": {"pin": ["a=w8"]}}, cells=[*cells])
    return read_page(sweep_page_of(sweep))


def places(page):
    """Number of each mark -> its place, from the left and the top in percent."""
    marks = [each for each in page.all("span") if "cell" in each.attributes.get("class", "").split()]
    pattern = r"left:(-?[\d.]+)%;top:(-?[\d.]+)%"
    return {int(mark.text): tuple(map(float, re.search(pattern, mark.attributes["style"]).groups())) for mark in marks}


def test_without_accuracy_the_picture_shows_the_divergence_by_logarithms():
    page = page_of(done(0, 100, divergence=1e-3), done(1, 200, divergence=1e-2), done(2, 300, divergence=1e-1))
    at = places(page)
    assert at[1][0] < at[2][0] < at[3][0]
    assert at[1][1] > at[2][1] > at[3][1]
    assert at[1][1] - at[2][1] == pytest.approx(at[2][1] - at[3][1], abs=0.05)
    assert at[2][0] - at[1][0] == pytest.approx(at[3][0] - at[2][0], abs=0.05)
    assert "accuracy" not in page.one("thead").text


def test_the_float_network_stands_at_its_accuracy():
    page = page_of(*(done(n, 100 + n, accuracy=0.8 + n / 50, float_accuracy=0.86) for n in range(4)))
    line = page.one("path", **{"class": "planned"}).attributes["d"]
    assert float(re.fullmatch(r"M0 ([\d.]+)H100", line)[1]) == pytest.approx(places(page)[4][1], abs=0.01)


def test_cells_without_results_are_in_the_table_alone():
    page = page_of(
        done(0, 100, accuracy=0.9, float_accuracy=0.9),
        cell(1, state="failed", reason="no plan keeps it", exit_code=3),
        cell(2),
        done(3, 50, accuracy=0.5).model_copy(update={"state": "differs", "reason": "outputs differ", "exit_code": 4}),
    )
    assert page.one("h1").text == (
        "1 of 4 cells are verified, 1 do not do what was promised, 1 failed, 1 are not run yet."
    )
    assert places(page).keys() == {1, 4}
    rows = [row.all("td")[-1].text for row in page.one("tbody").all("tr")]
    assert "No plan keeps it." in rows[1]
    assert rows[2] == "not run yet"
    assert "Outputs differ." in rows[3]
    assert [len(row.all("a")) for row in page.one("tbody").all("tr")] == [1, 0, 0, 1]
    assert page_of(cell(0)).all("figure") == []


def test_texts_are_shown_and_links_stay_inside():
    text = '<script>alert("x")</script>\x1b[31m'
    bad = done(0, 100, divergence=0.1).model_copy(update={"target": text, "folder": 'net/"><b>/x?y#z', "chosen": text})
    page = page_of(bad)
    assert len(page.all("script")) == 1
    assert page.one("a").attributes["href"] == "net/%22%3E%3Cb%3E/x%3Fy%23z/report.html"
    assert "\\x1b[31m" in page.one("tbody").text
    assert "\x1b" not in page.text
