"""`mixbit study`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from mixbit.commands.options import AsJson, Choices, Data, Device, LossSpec, Model, Seed, TargetName, TaskName
from mixbit.commands.reading import device_of, split
from mixbit.printing import print_study, say


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

    from mixbit.budget import Budget
    from mixbit.specs import load_subject
    from mixbit.studies.procedure import study as study_
    from mixbit.studies.sampling import RandomPlans

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
