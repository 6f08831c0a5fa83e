import sys
from functools import partial
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le

from mixbit.core.errors import InvalidInput, pick
from mixbit.core.io.methods import Methods, facts_of, method
from mixbit.metrics import METRICS
from mixbit.quantization.ranges import RANGES
from mixbit.roundings import ROUNDINGS
from mixbit.searches.search import SEARCHES


@method("linear", rank=1, aliases={"second": {"kind": "two", "tries": 2}})
def first(
    x: int,
    *,
    bound: Annotated[float, Gt(0)] | None = None,
    tries: Annotated[int, Ge(1), Le(9)] = 3,
    kind: Literal["one", "two"] = "one",
    warm: bool = False,
    name: str = "",
) -> tuple:
    """Say what was given."""
    return x, bound, tries, kind, warm, name


@method()
def plain(x: int) -> int:
    return x


def unmarked(x: int, *, tries: Annotated[int, Ge(1)] = 1) -> int:
    return x * tries


KNOWN = Methods("search", __name__)


def test_marked_functions_are_found_in_order_with_aliases():
    assert list(KNOWN) == ["first", "second", "plain"]
    assert KNOWN["first"] is first
    assert (KNOWN["second"].__name__, KNOWN["second"](1)) == ("second", (1, None, 2, "two", False, ""))
    assert KNOWN["second"].__doc__ == "first:kind=two,tries=2: Say what was given."


def test_a_new_file_in_a_folder_is_a_new_method(tmp_path, monkeypatch):
    mark = "from mixbit.core.io.methods import method\n"
    files = {
        "__init__": "",
        "zeta": mark + "@method(rank=1)\ndef zeta(): 'Last by name.'",
        "alpha": mark + "from a_folder.zeta import zeta\n@method()\ndef alpha(): 'Uses another.'\ndef helper(): ...",
        "_hidden": "raise AssertionError('is no method')",
    }
    (tmp_path / "a_folder").mkdir()
    for name, text in files.items():
        (tmp_path / "a_folder" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(Methods("kind", "a_folder")) == ["zeta", "alpha"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "a_folder"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("first", (1, None, 3, "one", False, "")),
        ("first:bound=2.5", (1, 2.5, 3, "one", False, "")),
        ("first:tries=7,kind=two,warm=true,name=x", (1, None, 7, "two", True, "x")),
        ("second:bound=1", (1, 1.0, 2, "two", False, "")),
    ],
)
def test_a_name_with_options(text, expected):
    name, found = KNOWN.find(text)
    assert name == text
    assert found(1) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other", "search 'other' is unknown; known: first, second, plain; or pass a function"),
        ("first:speed=1", "option 'speed=1' is not understood; its options are bound, tries, kind, warm, name, as in"),
        ("second:kind=one", "option 'kind=one' is not understood; its options are bound, warm, name, as in second:"),
        ("first:tries", "option 'tries' is not understood"),
        ("first:tries=1,tries=2", "each once"),
        ("plain:tries=1", "it has none"),
        ("first:tries=x", "tries=x: not a whole number"),
        ("first:tries=0", "search first: tries=0: give a whole number, at least 1 and at most 9, as 3"),
        ("first:bound=x", "bound=x: not a number"),
        ("first:bound=0", "search first: bound=0.0: give more than 0$"),
        ("first:bound=inf", "search first: bound=inf: give more than 0"),
        ("first:kind=three", "search first: kind 'three' is unknown; known: one, two"),
        ("first:warm=yes", "warm=yes: give true or false"),
    ],
)
def test_bad_options_are_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        KNOWN.find(text)


@pytest.mark.parametrize("options", [{"tries": 0}, {"tries": 2.5}, {"tries": True}, {"bound": -1}, {"kind": "three"}])
def test_bad_options_of_a_call_are_refused(options):
    with pytest.raises(InvalidInput, match=f"^first: {next(iter(options))}"):
        first(1, **options)
    with pytest.raises(InvalidInput, match=f"search first: {next(iter(options))}"):
        KNOWN.find(partial(first, **options))


def test_functions_pass_as_they_are():
    some, own = partial(first, tries=1), partial(unmarked, tries=0)
    assert KNOWN.find(first) == ("first", first)
    assert KNOWN.find(some) == ("first", some)
    name, found = KNOWN.find(own)
    assert (name, found(5)) == ("unmarked", own(5))
    with pytest.raises(InvalidInput, match="search: a int; give a name or a function"):
        KNOWN.find(1)  # type: ignore[arg-type] what a user may get wrong


def test_an_error_of_the_users_own_function_says_that_it_is_theirs():
    def own(table):
        raise KeyError(table)

    with pytest.raises(InvalidInput, match=r"search own fails: KeyError: 'x' \(.*test_methods\.py:\d+\)"):
        KNOWN.find(own)[1]("x")


def test_facts_hold_whatever_the_options():
    assert facts_of(first) == facts_of(partial(first, tries=1)) == facts_of(KNOWN["second"]) == {"linear"}
    assert facts_of(plain) == facts_of(unmarked) == set()


@pytest.mark.parametrize("name", ["lilac", "", None, ["red"]])
def test_pick_names_what_is_known(name):
    assert pick("colour", "red", ("red", "blue")) == "red"
    with pytest.raises(InvalidInput, match=r"^colour .* is unknown; known: red, blue$"):
        pick("colour", name, ("red", "blue"))


def test_methods_of_the_package_have_options_that_can_be_written():
    assert METRICS.find("hawq:vectors=5,rule=nncf")[1].keywords == {"vectors": 5, "rule": "nncf"}
    assert SEARCHES.find("mixquant:multiplier=4")[1].keywords == {"multiplier": 4.0}
    with pytest.raises(
        InvalidInput, match="its options are episodes, warmup, warm_start, parallel, seed, as in autoq:episodes="
    ):
        SEARCHES.find("autoq:nonsense=1")


@pytest.mark.parametrize(
    ("known", "name"), [(known, name) for known in (METRICS, SEARCHES, ROUNDINGS, RANGES) for name in known]
)
def test_every_method_knows_its_options(known, name):
    with pytest.raises(
        InvalidInput, match=f"{name}: option 'nonsense=1' is not understood; (its options are|it has none)"
    ):
        known.find(f"{name}:nonsense=1")
