"""`mixbit search` and `mixbit front`: plans from a table."""

from pathlib import Path
from typing import Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.printing import print_rows, say
from mixbit.core import InvalidInput, Plan
from mixbit.metric_study.pictures import SIZE, new_figure, save_figure
from mixbit.searches.front import Front

#: Smaller shares are rounding.
GAP = 1e-4


def draw_front(path: Path, front: Front) -> None:
    """Draw the predicted loss of every plan over its use of the resource, and mark those with one scheme for all."""
    figure = new_figure(SIZE)
    axes = figure.subplots()
    used, loss = front.figures[front.resource], front.figures["loss"]
    axes.step(used, loss, where="post", linewidth=1)
    for index in range(len(front)):
        schemes = {front.schemes[column] for column in front.choices[index]}
        if len(schemes) == 1:
            axes.annotate(f"uniform {schemes.pop()}", (used[index], loss[index]), fontsize="small")
            axes.plot(used[index], loss[index], "o", markersize=4)
    if loss.min() > 0:
        axes.set_yscale("log")
    axes.set_xlabel(front.resource)
    axes.set_ylabel(f"predicted loss, {front.made_by.partition(' ')[0]}")
    axes.set_title(f"{len(front)} plans that no other plan beats", fontsize="medium")
    save_figure(path, figure)


def search(
    sensitivity: Annotated[
        Path, typer.Argument(help="sensitivity.json, as measure wrote it; or front.json, as front did")
    ],
    budget: Annotated[list[str], options.BUDGET],
    out: Annotated[Path, typer.Option("--out", help="plan.json")],
    method: Annotated[str, typer.Option("--method", help=options.SEARCH_HELP)] = "ilp",
    pin: options.Pins = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the plan with the smallest predicted loss within the budget."""
    from mixbit.core import Budget, Sensitivity, check_new_file, read_json
    from mixbit.searches.front import Front
    from mixbit.searches.search import priced, search as search_

    check_new_file(out, force=force)
    limits, verdict = Budget.parse(budget), ""
    stored = read_json(sensitivity)
    if isinstance(stored, dict) and "points" in stored:
        if method != "ilp" or pin:
            raise InvalidInput(f"{sensitivity}: a front; --method and --pin need the table that measure wrote")
        plans = Front.load(sensitivity)
        plan = plans.within(limits)
        if plans.thinned_from is not None:
            say(f"{sensitivity} holds {len(plans)} of {plans.thinned_from} plans: a better one may be left out")
    else:
        table = Sensitivity.load(sensitivity)
        verdict = table.verdict
        table = table.pinned(options.pins_of(pin))
        plan = priced(table, limits, search_(table, limits, method=options.function_or_name(method, "SEARCH")))
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


def print_prices(plan: Plan) -> None:
    """Say what each limit costs, and how far the plan may be from the best."""
    gap = plan.predicted.get("optimality_gap", 0.0)
    if gap > GAP:
        say(f"another plan within the budget may have {gap:.1%} less predicted loss; the search ilp finds it")
    for name, price in plan.prices.items():
        line = f"{name}={plan.budget[name]:g} (used {price.used:.6g}): "
        if price.gain <= 0:
            say(f"{line}looser by 5 %, it would change nothing")
            continue
        widens = "; ".join(f"{layer} {change}" for layer, change in list(price.widens.items())[:3])
        say(
            f"{line}{price.looser:.6g} would lower the predicted loss by {price.gain:.3g}"
            f"{f', first to widen: {widens}' if widens else ''} (shadow price {price.price:.3g} a unit)"
        )


#: Rows of a front that are printed.
ROWS = 20


def front(
    sensitivity: Annotated[Path, typer.Argument(help="sensitivity.json, as measure wrote it")],
    out: Annotated[Path, typer.Option("--out", help="front.json")],
    resource: Annotated[
        str, typer.Option("--resource", help="weight_bytes, weight_ratio, mean_bits, bit_ops or latency_ms")
    ] = "weight_bytes",
    points: Annotated[
        int | None, typer.Option("--points", min=2, help="write at most this many plans, evenly spaced; all by default")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="front.png; needs matplotlib")] = None,
    pin: options.Pins = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Find all plans that are best at some budget of one resource."""
    from mixbit.core import Sensitivity, check_new_file
    from mixbit.metric_study.pictures import check_matplotlib
    from mixbit.searches.front import front as front_

    check_new_file(out, force=force)
    if picture is not None:
        check_new_file(picture, force=force)
        check_matplotlib(picture.name)
    plans = front_(Sensitivity.load(sensitivity).pinned(options.pins_of(pin)), resource)
    written = plans if points is None else plans.thinned(points)
    written.save(out)
    if picture is not None:
        draw_front(picture, plans)
    if as_json:
        print(out.read_text(encoding="utf-8"), end="")
        return
    shown = plans.thinned(ROWS)
    names = ("loss", "weight_bytes", "mean_bits", *({resource} - {"weight_bytes", "mean_bits"}))
    rows = [tuple(f"{shown.figures[name][i]:.6g}" for name in names) for i in range(len(shown))]
    print_rows(f"front over {resource}", names, rows)
    say(f"{len(shown)} of {len(plans)} plans shown, {len(written)} written to {out}")
