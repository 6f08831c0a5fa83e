"""`mixbit measure`: the table."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.printing import print_rows, say
from mixbit.core import Sensitivity


def measure(
    model: options.Model,
    data: options.Data,
    target: options.TargetName,
    out: Annotated[Path, typer.Option("--out", help="sensitivity.json")],
    metric: options.Metric = "fisher",
    choices: options.Choices = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="also time each choice in the target's runtime, for budgets of latency_ms")
    ] = False,
    ranges: options.Ranges = "mse",
    task: options.TaskName = "classification",
    loss: options.LossSpec = None,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the table of predicted loss increase, layers x choices."""
    from mixbit.core import check_new_file
    from mixbit.core.batches import split_batches
    from mixbit.core.io.user_code import load_data
    from mixbit.graph.capture import capture
    from mixbit.metrics.measure import measure as measure_
    from mixbit.quantization.calibrate import calibrate
    from mixbit.roundings.quantize import quantize
    from mixbit.targets.latency import timed

    check_new_file(out, force=force)
    options.say_unless_used(loss, metric)
    module = options.model_on(model, device)
    batches = split_batches(module, load_data(data))
    with redirect_stdout(sys.stderr):
        graph = capture(module, batches[0][0])
        calibration = calibrate(graph, batches, ranges=options.function_or_name(ranges, "RANGES"))
        table = measure_(
            graph,
            calibration,
            target=target,
            task=options.task_of(task, loss),
            metric=options.function_or_name(metric, "METRIC"),
            choices=options.split(choices),
            seed=seed,
        )
        if latency:
            table = timed(table, graph, lambda plan: quantize(graph, plan, calibration))
    table.save(out)
    if as_json:
        print(out.read_text(encoding="utf-8"), end="")
    else:
        print_sensitivities(table)
        say(f"{table.verdict}\nwritten to {out}")


def print_sensitivities(table: Sensitivity) -> None:
    """Print the table with its standard errors."""
    rows = []
    for layer, losses, errors in zip(table.layers, table.loss, table.standard_error, strict=True):
        rows.append((layer, *[f"{loss:.2e} ±{error:.0e}" for loss, error in zip(losses, errors, strict=True)]))
    print_rows(f"predicted loss increase by {table.metric}", ("layer", *table.choices), rows)
