from functools import partial
from typing import Literal

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.methods import with_options
from mixbit.metrics import METRICS, find_metric
from mixbit.searches.search import SEARCHES, find_search


def method(
    x: int,
    *,
    bound: float | None = None,
    tries: int = 3,
    kind: Literal["one", "two"] = "one",
    warm: bool = False,
    name: str = "",
) -> tuple:
    return x, bound, tries, kind, warm, name


def plain(x: int) -> int:
    return x


KNOWN = {"method": method, "plain": plain}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method", (1, None, 3, "one", False, "")),
        ("method:bound=2.5", (1, 2.5, 3, "one", False, "")),
        ("method:tries=7,kind=two,warm=true,name=x", (1, None, 7, "two", True, "x")),
    ],
)
def test_a_name_with_options(text, expected):
    name, found = with_options("search", text, KNOWN)
    assert name == text
    assert found(1) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other", "search 'other' is unknown; known: method, plain; or pass a function"),
        ("method:speed=1", "option 'speed=1' is not understood; its options are bound, tries, kind, warm, name, as in"),
        ("method:tries", "option 'tries' is not understood"),
        ("method:tries=1,tries=2", "each once"),
        ("plain:tries=1", "it has none"),
        ("method:tries=x", "tries=x: not a whole number"),
        ("method:bound=x", "bound=x: not a number"),
        ("method:kind=three", "kind=three: give one of one, two"),
        ("method:warm=yes", "warm=yes: give true or false"),
    ],
)
def test_bad_options_are_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        with_options("search", text, KNOWN)


def test_functions_pass_as_they_are():
    some = partial(method, tries=1)
    assert with_options("search", method, KNOWN) == ("method", method)
    assert with_options("search", some, KNOWN) == ("method", some)


def test_methods_of_the_package_have_options_that_can_be_written():
    assert find_metric("hawq:vectors=5,rule=nncf")[1].keywords == {"vectors": 5, "rule": "nncf"}
    assert find_search("mixquant:multiplier=4")[1].keywords == {"multiplier": 4.0}
    with pytest.raises(InvalidInput, match="its options are episodes, warmup, warm_start, seed, as in autoq:episodes="):
        find_search("autoq:nonsense=1")


@pytest.mark.parametrize(
    ("name", "find"), [*((one, find_metric) for one in METRICS), *((one, find_search) for one in SEARCHES)]
)
def test_every_method_knows_its_options(name, find):
    with pytest.raises(
        InvalidInput, match=f"{name}: option 'nonsense=1' is not understood; (its options are|it has none)"
    ):
        find(f"{name}:nonsense=1")
