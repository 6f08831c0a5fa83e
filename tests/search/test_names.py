"""`mixbit.search` is a folder and a function, whichever is used first."""

import subprocess
import sys

import pytest

import mixbit as mb
import mixbit.search.ilp
from tests.search.fixtures import small_table

USES = (
    "import mixbit.search.ilp as ilp; ilp.solve(problem())",
    "from mixbit.search.ilp import solve; solve(problem())",
    "import mixbit.search.ilp; mixbit.search.ilp.solve(problem())",
    "from mixbit.search import search, SEARCHES, uniform_plans; search(table(), budget()); SEARCHES['ilp']",
    "from mixbit import search; search(table(), budget()); search.ilp.solve(problem())",
    "import mixbit as mb; mb.search(table(), budget()); mb.search(table(), budget(), method='ilp')",
    "import mixbit.search; mixbit.search(table(), budget())",
)
HELP = """
import sys; sys.path.insert(0, '.')
def table(): from tests.search.fixtures import small_table; return small_table()
def problem(): from mixbit.search._problem import Problem; return Problem.of([[1.0]], [[[1.0]]], [1.0])
def budget(): import mixbit; return mixbit.Budget(mean_bits=6)
"""


@pytest.mark.parametrize("first", range(len(USES)))  # turning them round puts each pair in both orders
def test_every_way_to_name_it_works_in_any_order(first):
    code = "\n".join([HELP.strip(), *USES[first:], *USES[:first], "print('torch' in sys.modules)"])
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("False\n", "")


def test_the_folder_answers_like_the_function():
    budget = mb.Budget(mean_bits=6)
    assert mb.search is mixbit.search
    assert mb.search(small_table(), budget) == mixbit.search.search(small_table(), budget)
    with pytest.raises(mb.InvalidInput, match="search 'magic' is unknown"):
        mb.search(small_table(), budget, method="magic")
