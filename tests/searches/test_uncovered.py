"""Weights that no layer covers count in budgets, 32 bits each, and in what plans predict."""

import numpy as np
import pytest

from mixbit.core.budget import Budget
from mixbit.core.errors import InfeasibleBudget
from mixbit.core.table import Sensitivity
from mixbit.searches.front import front
from mixbit.searches.search import priced, search
from tests.searches.fixtures import small_table

#: Of 600 weights in layers and these.
UNCOVERED = 200
TABLE = small_table(uncovered=UNCOVERED)


@pytest.mark.parametrize(("name", "fixed"), [("mean_bits", 8.0), ("weight_bytes", 800.0), ("weight_ratio", 0.25)])
def test_they_are_part_of_every_figure_and_limit(name, fixed):
    widths = {"mean_bits": 8 * 600 / 800, "weight_bytes": 600.0, "weight_ratio": 600 / 3200}[name]
    dearest = search(TABLE, Budget(weight_bytes=10_000))
    assert set(dearest.layers.values()) == {"w8a8"}
    assert dearest.predicted[name] == pytest.approx(fixed + widths)
    between = fixed + 0.75 * widths
    plan = search(TABLE, Budget(**{name: between}))
    assert fixed + widths / 2 <= plan.predicted[name] <= between
    covered = search(small_table(), Budget(mean_bits=6))
    assert plan.layers == covered.layers  # the same limit on the layers alone
    price = priced(TABLE, Budget(**{name: between}), plan).prices[name]
    assert price.used == pytest.approx(plan.predicted[name])
    assert price.looser == pytest.approx(1.05 * between)
    points = front(TABLE, name).figures[name]
    np.testing.assert_allclose(points[[0, -1]], [fixed + widths / 2, fixed + widths])


def test_a_limit_below_what_they_take_is_refused_with_the_reachable_range():
    with pytest.raises(
        InfeasibleBudget,
        match=r"mean_bits=4 \(reachable: 11 to 14\), of which weights that stay in float take 8",
    ):
        search(TABLE, Budget(mean_bits=4))
    with pytest.raises(InfeasibleBudget, match=r"mean_bits=3 \(reachable: 4 to 8\); "):
        search(small_table(), Budget(mean_bits=3))


def test_the_file_holds_their_number_and_older_files_hold_none(tmp_path):
    TABLE.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json").uncovered == UNCOVERED
    text = (
        (tmp_path / "s.json")
        .read_text()
        .replace(f'"uncovered": {UNCOVERED}', '"trace": null')
        .replace('"trace": null,', "", 1)
    )
    (tmp_path / "s.json").write_text(text)
    assert Sensitivity.load(tmp_path / "s.json").uncovered == 0
