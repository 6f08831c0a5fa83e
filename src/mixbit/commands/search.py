"""`mixbit search` and `mixbit front`: plans from a table."""

from pathlib import Path
from typing import Annotated

import typer

from mixbit.commands.options import BUDGET, SEARCH_HELP, AsJson, Force, Pins
from mixbit.commands.reading import function_or_name, pins_of
from mixbit.errors import InvalidInput
from mixbit.printing import print_prices, print_rows, say


def search(
    sensitivity: Annotated[
        Path, typer.Argument(help="sensitivity.json, as measure wrote it; or front.json, as front did")
    ],
    budget: Annotated[list[str], BUDGET],
    out: Annotated[Path, typer.Option("--out", help="plan.json")],
    method: Annotated[str, typer.Option("--method", help=SEARCH_HELP)] = "ilp",
    pin: Pins = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the plan with the smallest predicted loss within the budget."""
    from mixbit.budget import Budget
    from mixbit.files import check_new_file, read_json
    from mixbit.search import Front, priced
    from mixbit.search import search as search_
    from mixbit.sensitivity import Sensitivity

    check_new_file(out, force=force)
    limits, verdict = Budget.parse(budget), ""
    stored = read_json(sensitivity)
    if isinstance(stored, dict) and "points" in stored:
        if method != "ilp" or pin:
            raise InvalidInput(f"{sensitivity}: a front; --method and --pin need the table that measure wrote")
        found = Front.load(sensitivity)
        plan = found.within(limits)
        if found.thinned_from is not None:
            say(f"{sensitivity} holds {len(found)} of {found.thinned_from} plans: a better one may be left out")
    else:
        table = Sensitivity.load(sensitivity)
        verdict = table.verdict
        table = table.pinned(pins_of(pin))
        plan = priced(table, limits, search_(table, limits, method=function_or_name(method, "SEARCH")))
    plan.save(out)
    if as_json:
        print(out.read_text(encoding="utf-8"), end="")
    else:
        print_rows("plan", ("layer", "scheme"), list(plan.layers.items()))
        print_rows("predicted", ("what", "value"), [(name, f"{value:g}") for name, value in plan.predicted.items()])
        print_prices(plan)
        say(f"written to {out}")
    if verdict.startswith("cannot rank"):
        say(verdict)


#: Rows of a front that are printed.
ROWS = 20


def front(
    sensitivity: Annotated[Path, typer.Argument(help="sensitivity.json, as measure wrote it")],
    out: Annotated[Path, typer.Option("--out", help="front.json")],
    resource: Annotated[
        str, typer.Option("--resource", help="weight_bytes, weight_ratio, mean_bits, bit_ops or latency_ms")
    ] = "weight_bytes",
    points: Annotated[
        int | None, typer.Option("--points", min=2, help="write at most so many, evenly; all where left out")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="front.png; needs matplotlib")] = None,
    pin: Pins = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find all plans that are best at some budget of one resource."""
    from mixbit.files import check_new_file
    from mixbit.picture import check_matplotlib, draw_front
    from mixbit.search import front as front_
    from mixbit.sensitivity import Sensitivity

    check_new_file(out, force=force)
    if picture is not None:
        check_new_file(picture, force=force)
        check_matplotlib(picture.name)
    found = front_(Sensitivity.load(sensitivity).pinned(pins_of(pin)), resource)
    written = found if points is None else found.thinned(points)
    written.save(out)
    if picture is not None:
        draw_front(picture, found)
    if as_json:
        print(out.read_text(encoding="utf-8"), end="")
        return
    shown = found.thinned(ROWS)
    names = ("loss", "weight_bytes", "mean_bits", *({resource} - {"weight_bytes", "mean_bits"}))
    rows = [tuple(f"{shown.figures[name][i]:.6g}" for name in names) for i in range(len(shown))]
    print_rows(f"front over {resource}", names, rows)
    say(f"{len(shown)} of {len(found)} plans shown, {len(written)} written to {out}")
