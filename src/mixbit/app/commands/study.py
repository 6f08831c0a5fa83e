"""`mixbit study`."""

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
    LossSpec,
    Model,
    Seed,
    TargetName,
    TaskName,
    device_of,
    split,
)
from mixbit.app.printing import print_study, say
from mixbit.core.batches import split_batches
from mixbit.core.io.user_code import load_data, load_model, load_task
from mixbit.graph.capture import capture
from mixbit.metric_study.truth import Subject


def load_subject(model: str, data: tuple[str, str], task: str, loss: str | None, device: str) -> Subject:
    """What a study is about: the captured MODEL, DATA to calibrate and to evaluate on, task and loss."""
    module = load_model(model).to(device)
    calibration, evaluated = (split_batches(module, load_data(spec)) for spec in data)
    return Subject(capture(module, calibration[0][0]), calibration, evaluated, load_task(task, loss))


def study(
    model: Model,
    data: Data,
    evaluate: Annotated[str, typer.Option("--eval", help="DATA to take the truth on, with labels where there are any")],
    target: TargetName,
    out: Annotated[Path, typer.Option("--out", help="folder for the results; started again, a study goes on there")],
    plans: Annotated[int, typer.Option("--plans", min=3, help="how many random plans of each set")] = 150,
    metrics: Annotated[str | None, typer.Option("--metrics", help="as in fisher,other; all where left out")] = None,
    near_budget: Annotated[
        str | None, typer.Option("--near-budget", help="name=value; a second set of plans within 5 % of it")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="that evaluate plans, sharing the cores")] = 2,
    choices: Choices = None,
    task: TaskName = "classification",
    loss: LossSpec = None,
    device: Device = "cpu",
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="clear a study that is in --out, and start over")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell which metric ranks plans best on this model, by what random plans truly cost."""
    from functools import partial

    from mixbit.core import Budget
    from mixbit.metric_study.plans import RandomPlans
    from mixbit.metric_study.study import study as study_

    near = None if near_budget is None else Budget.parse([near_budget])
    with redirect_stdout(sys.stderr):
        found = study_(
            partial(load_subject, model, (data, evaluate), task, loss, str(device_of(device))),
            target=target,
            out=out,
            choices=split(choices),
            metrics=split(metrics),
            plans=RandomPlans(plans, near, seed),
            processes=processes,
            force=force,
        )
    if as_json:
        print(found.to_json(), end="")
    else:
        print_study(found)
        say(f"written to {out}")
