"""`mixbit measure`: the table."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from mixbit.app.commands.options import (
    AsJson,
    Choices,
    Data,
    Device,
    Force,
    LossSpec,
    Metric,
    Model,
    Ranges,
    Seed,
    TargetName,
    TaskName,
    function_or_name,
    model_on,
    say_unless_used,
    split,
)
from mixbit.app.printing import print_sensitivities, say


def measure(
    model: Model,
    data: Data,
    target: TargetName,
    out: Annotated[Path, typer.Option("--out", help="sensitivity.json")],
    metric: Metric = "fisher",
    choices: Choices = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="also time the choices in the target's runtime, for budgets of latency_ms")
    ] = False,
    ranges: Ranges = "mse",
    task: TaskName = "classification",
    loss: LossSpec = None,
    device: Device = "cpu",
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the table of predicted loss increase, layers x choices."""
    from mixbit.core import check_new_file
    from mixbit.core.batches import split_batches
    from mixbit.core.io.user_code import load_data, load_task
    from mixbit.graph.capture import capture
    from mixbit.metrics.measure import measure as measure_
    from mixbit.quantization.calibrate import calibrate
    from mixbit.targets.latency import timed

    check_new_file(out, force=force)
    say_unless_used(loss, metric)
    module = model_on(model, device)
    batches = split_batches(module, load_data(data))
    with redirect_stdout(sys.stderr):
        graph = capture(module, batches[0][0])
        inputs = [inputs for inputs, _ in batches]
        calibration = calibrate(graph, inputs, ranges=function_or_name(ranges, "RANGES"))
        table = measure_(
            graph,
            batches,
            target=target,
            task=load_task(task, loss),
            metric=function_or_name(metric, "METRIC"),
            choices=split(choices),
            calibration=calibration,
            seed=seed,
        )
        if latency:
            table = timed(table, graph, calibration)
    table.save(out)
    if as_json:
        print(out.read_text(encoding="utf-8"), end="")
    else:
        print_sensitivities(table)
        say(f"{table.verdict}\nwritten to {out}")
