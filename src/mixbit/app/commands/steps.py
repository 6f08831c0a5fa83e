"""`mixbit measure`, `search` and `front`: a table, and plans from it; `mixbit study`: which metric to trust."""

import sys
from contextlib import redirect_stdout
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_rows, refuse
from mixbit.core import (
    Budget,
    InvalidInput,
    check_matplotlib,
    check_new_file,
    find_target,
    new_figure,
    new_file,
    save_figure,
    say,
)

if TYPE_CHECKING:
    from mixbit.core import Plan, Room
    from mixbit.datasets.load import Reading
    from mixbit.metric_study.study import Study
    from mixbit.searches.front import Front

#: Rows of a front that are printed.
ROWS = 20


@options.with_reading
def measure(
    model: options.Model,
    data: options.Data,
    target: options.TargetName,
    out: Annotated[Path, typer.Option(help="sensitivity.json")],
    metric: options.Metric = "fisher",
    choices: options.Choices = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="also time each choice in the target's runtime, for budgets of latency_ms")
    ] = False,
    size: Annotated[
        bool, typer.Option("--size", help="also write the files of each choice, for budgets of file_bytes")
    ] = False,
    ranges: options.Ranges = "mse",
    dynamic: options.Dynamic = None,
    samples: options.Samples = None,
    task: options.TaskName = None,
    output_weight: options.OutputWeights = None,
    loss: options.LossSpec = None,
    device: options.Device = "cpu",
    memory: options.Memory = None,
    scratch: options.Scratch = None,
    seed: options.Seed = 0,
    processes: options.Sharing = None,
    engine: options.EngineName = "local",
    ray_address: options.RayAddress = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    *,
    read: options.Read,
) -> None:
    """Write the table of predicted loss increase, layers x choices."""
    from functools import partial

    from mixbit.graph.resources import note_on_uncovered
    from mixbit.metrics import METRICS
    from mixbit.metrics.measure import measure as measure_, try_metric
    from mixbit.quantization.calibrate import calibrate
    from mixbit.quantization.ranges import RANGES
    from mixbit.quantization.shared import Shared, begun
    from mixbit.roundings.quantize import quantize
    from mixbit.targets.export import check_exportable
    from mixbit.targets.size import sized
    from mixbit.targets.timed import timed

    out = out.absolute()  # the user's code may change the working folder
    room = options.room_of(memory, scratch, device)
    if room is not None:
        refuse({"latency": latency, "size": size}, "with --memory no file is run or written")
    free, _ = options.dynamic_of(dynamic), options.task_of(task, loss, output_weight)
    reading, place = read(seed=seed), str(options.device_of(device))
    shared_by = options.sharing_of(engine, processes, ray_address, room)
    options.say_unless_used(loss, metric)
    predictor, range_method = options.function_or_name(metric, "METRIC"), options.function_or_name(ranges, "RANGES")
    METRICS.find(predictor)
    RANGES.find(range_method)
    find_target(target).schemes(options.split(choices))
    words = task, loss, output_weight
    setup = partial(load_case, model, data, words, place, free, samples, reading, out.parent, room)
    sharing = None if shared_by is None else Shared(setup, shared_by)
    with new_file(out, force=force), redirect_stdout(sys.stderr), begun(sharing) as shared:
        graph, batches, meant = setup()
        if (note := note_on_uncovered(graph)) is not None:
            say(note)
        check_exportable(graph)
        meant = try_metric(graph, batches, meant, predictor)
        calibration = calibrate(graph, batches, target=target, ranges=range_method)
        table = measure_(
            graph,
            calibration,
            target=target,
            task=meant,
            metric=predictor,
            choices=options.split(choices),
            seed=seed,
            shared=shared,
        )
        if latency:
            table, note = timed(table, graph, lambda plan: quantize(graph, plan, calibration))
            say(note)
        if size:
            table = sized(table, lambda plan: quantize(graph, plan, calibration))
        table.save(out)
    if as_json:
        print(out.read_text(encoding="utf-8"), end="")
        return
    rows = []
    for layer, losses, errors in zip(table.layers, table.loss, table.standard_error, strict=True):
        rows.append((layer, *[f"{loss:.2e} ±{error:.0e}" for loss, error in zip(losses, errors, strict=True)]))
    print_rows(f"predicted loss increase by {table.metric}", ("layer", *table.choices), rows)
    say(f"{table.verdict}\nwritten to {out}")


def load_case(
    model: str,
    data: str,
    task: tuple[str | None, str | None, list[str] | None],
    device: str,
    dynamic: dict[str | int, Any],
    samples: int | None,
    reading: "Reading",
    folder: Path,
    room: "Room | None" = None,
) -> tuple[Any, ...]:
    """What is measured: the captured MODEL, DATA, which may be written to the folder, and the task with its loss.

    With a `room`, MODEL's weights stay in their files.
    """
    from mixbit.core import split_batches
    from mixbit.graph.capture import capture_all

    network = options.model_on(model, device, on_meta=room is not None)
    meant = options.task_of(*task, network)
    loaded, *_ = options.data_of({"data": data}, network, reading, meant)
    batches = split_batches(network.module, loaded["data"], samples=samples, folder=folder)
    inputs = batches.map(itemgetter(0))
    return capture_all(network.module, inputs, dynamic, weights=network.weights, room=room), batches, meant


def search(
    sensitivity: Annotated[Path, typer.Argument(help="sensitivity.json, as measure wrote it, or front's front.json")],
    budget: Annotated[list[str], options.BUDGET],
    out: Annotated[Path, typer.Option(help="plan.json")],
    method: options.Search = "ilp",
    pin: options.Pins = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Find the plan with the smallest predicted loss within the budget."""
    from mixbit.core import Sensitivity, read_json
    from mixbit.searches.front import Front
    from mixbit.searches.search import priced, search as search_

    limits, verdict = Budget.parse(budget), ""
    with new_file(out, force=force):
        stored = read_json(sensitivity)
        if isinstance(stored, dict) and "points" in stored:
            if method != "ilp" or pin:
                raise InvalidInput(f"{sensitivity}: a front; --method and --pin need the table that measure wrote")
            plans = Front.load(sensitivity)
            plan = plans.within(limits)
            if plans.thinned_from is not None:
                say(f"{sensitivity} holds {len(plans)} of {plans.thinned_from} plans: a better one may be left out")
        else:
            table = Sensitivity.load(sensitivity).pinned(options.pins_of(pin))
            verdict = table.verdict
            function = options.function_or_name(method, "SEARCH")
            plan = priced(table, limits, search_(table, limits, method=function))
        plan.save(out)
    if as_json:
        print(out.read_text(encoding="utf-8"), end="")
    else:
        print_rows("plan", ("layer", "scheme"), list(plan.layers.items()))
        print_rows("predicted", ("what", "value"), [(name, f"{value:g}") for name, value in plan.predicted.items()])
        say_prices(plan)
        say(f"written to {out}")
    if verdict.startswith("cannot rank"):
        say(verdict)


def say_prices(plan: "Plan") -> None:
    """Say what each limit costs, and how far the plan may be from the best."""
    gap = plan.predicted.get("optimality_gap", 0.0)
    if gap > 1e-4:  # smaller shares are rounding
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


def front(
    sensitivity: Annotated[Path, typer.Argument(help="sensitivity.json, as measure wrote it")],
    out: Annotated[Path, typer.Option(help="front.json")],
    resource: Annotated[
        str, typer.Option(help="weight_bytes, weight_ratio, file_bytes, mean_bits, bit_ops or latency_ms")
    ] = "weight_bytes",
    points: Annotated[int | None, typer.Option(min=2, help="at most so many plans, evenly spaced; else all")] = None,
    picture: Annotated[Path | None, typer.Option(help="front.png; needs matplotlib")] = None,
    pin: options.Pins = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Find all plans that are best at some budget of one resource."""
    from mixbit.core import Sensitivity
    from mixbit.searches.front import front as front_

    if picture is not None:
        if picture.suffix != ".png" or picture.absolute() == out.absolute():
            raise InvalidInput(f"{picture}: the picture is a PNG; give a name of its own that ends with .png")
        check_new_file(picture, force=force)
        check_matplotlib(picture.name)
    with new_file(out, force=force):
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


def draw_front(path: Path, plans: "Front") -> None:
    """Draw the predicted loss of every plan over its use of the resource, and mark those with one scheme for all."""
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    used, loss = plans.figures[plans.resource], plans.figures["loss"]
    axes.step(used, loss, where="post", linewidth=1)
    for index in range(len(plans)):
        schemes = {plans.schemes[column] for column in plans.choices[index]}
        if len(schemes) == 1:
            axes.annotate(f"uniform {schemes.pop()}", (used[index], loss[index]), fontsize="small")
            axes.plot(used[index], loss[index], "o", markersize=4)
    if loss.min() > 0:
        axes.set_yscale("log")
    axes.set_xlabel(plans.resource)
    axes.set_ylabel(f"predicted loss, {plans.made_by.partition(' ')[0]}")
    axes.set_title(f"{len(plans)} plans that no other plan beats", fontsize="medium")
    save_figure(path, figure)


def load_subject(
    model: str,
    data: tuple[str, str],
    task: tuple[str | None, str | None, list[str] | None],
    device: str,
    dynamic: dict[str | int, Any],
    samples: int | None,
    reading: "Reading",
) -> tuple[Any, ...]:
    """What a study is about: the captured MODEL, DATA to calibrate and to evaluate on, and the task with its loss."""
    from mixbit.core import split_batches
    from mixbit.graph.capture import capture_all

    network = options.model_on(model, device)
    meant = options.task_of(*task, network)
    read, *_ = options.data_of(dict(zip(("data", "eval"), data, strict=True)), network, reading, meant)
    calibration = split_batches(network.module, read["data"], samples=samples)
    evaluated = split_batches(network.module, read["eval"])
    graph = capture_all(network.module, calibration.map(itemgetter(0)), dynamic)
    return graph, meant.aligned(calibration), meant.aligned(evaluated), meant


@options.with_reading
def study(
    model: options.Model,
    data: options.Data,
    evaluate: Annotated[str, typer.Option("--eval", help="DATA to evaluate plans on, with labels where there are any")],
    target: options.TargetName,
    out: Annotated[Path, typer.Option(help="folder for the results; the same call resumes there")],
    plans: Annotated[int, typer.Option(min=3, help="number of random plans in each set")] = 150,
    metrics: Annotated[str | None, typer.Option(help="as in fisher,hawq; all by default")] = None,
    near_budget: Annotated[str | None, typer.Option(help="name=value; a second set of plans within 5 % of it")] = None,
    processes: options.Processes = 2,
    engine: options.EngineName = "local",
    ray_address: options.RayAddress = None,
    choices: options.Choices = None,
    dynamic: options.Dynamic = None,
    samples: options.Samples = None,
    task: options.TaskName = None,
    output_weight: options.OutputWeights = None,
    loss: options.LossSpec = None,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="delete the study in --out and start over")] = False,
    as_json: options.AsJson = False,
    *,
    read: options.Read,
) -> None:
    """Report which metric ranks plans best on this model, by the true cost of random plans."""
    from functools import partial

    from mixbit.metric_study.study import study as study_

    out = out.absolute()  # the user's code may change the working folder
    free, place = options.dynamic_of(dynamic), str(options.device_of(device))
    shared = options.engine_of(engine, processes, ray_address)
    reading = read(seed=seed)
    with redirect_stdout(sys.stderr):
        result = study_(
            partial(load_subject, model, (data, evaluate), (task, loss, output_weight), place, free, samples, reading),
            target=target,
            out=out,
            choices=options.split(choices),
            metrics=options.split(metrics),
            num_plans=plans,
            near_budget=None if near_budget is None else Budget.parse([near_budget]),
            seed=seed,
            engine=shared,
            force=force,
        )
    if as_json:
        print(result.to_json(), end="")
    else:
        print_study(result)
        say(f"written to {out}")


def print_study(result: "Study") -> None:
    """Print a study's table, the best metric first, what limits it, and which metrics have no figures and why."""

    def with_interval(row: dict[str, Any], name: str) -> str:
        if row[f"{name}_interval"] is None:
            return _or_dash(row[name], ".3f")
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.2f} to {high:.2f})"

    answered = {metric: row for metric, row in result.metrics.items() if "seconds" in row}
    sets = [prefix for prefix in ("", "near_") if f"{prefix}ceiling" in result.reliability]
    names = [f"{prefix}{name}" for prefix in sets for name in ("spearman", "kendall", "kl_spearman")]
    if result.truth == "kl":
        names = [name for name in names if "kl_" not in name]
    budgets = list(dict.fromkeys(budget for row in answered.values() for budget in row["regret"]))
    rows = []
    for metric, row in sorted(answered.items(), key=lambda item: 2 if (rank := item[1]["spearman"]) is None else -rank):
        regret = [_or_dash(row["regret"][budget], ".4f") for budget in budgets]
        spent = _or_dash(row["seconds"], ".1f"), _or_dash(row["peak_mb"], ".0f")
        rows.append((metric, *[with_interval(row, name) for name in names], *regret, *spent))
    columns = ("metric", *names, *[f"regret at {budget}" for budget in budgets], "seconds", "peak MB")
    print_rows(f"rank correlation with {result.truth}, and 95 % intervals from 20 different plans on", columns, rows)
    for prefix in sets:
        which = "plans near the budget" if prefix else "random plans"
        reliability = result.reliability[f"{prefix}reliability"]
        if reliability > 0:
            ceiling = with_interval(result.reliability, f"{prefix}ceiling")
            what = f"has reliability {reliability:.3f}; a perfect metric would correlate by about {ceiling}"
        else:
            what = "does not agree between halves of the data; evaluate on more data, or more plans"
        say(f"{which}: {result.truth} {what}")
    reasons = {metric: row["reason"] for metric, row in result.metrics.items() if "reason" in row}
    unlabelled = [metric for metric in reasons if metric not in answered and "needs labels" in reasons[metric]]
    if unlabelled:
        say(f"{', '.join(unlabelled)}: need labels in the calibration data; give batches that end with them")
    for metric, reason in reasons.items():
        if metric not in unlabelled:
            say(f"{metric}: {reason}")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
