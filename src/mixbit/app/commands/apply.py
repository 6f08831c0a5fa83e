"""`mixbit apply`: a plan file, deployed."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.commands.quantize import print_deployed, refuse
from mixbit.core import check_writable_folder, find_target


@options.with_reading
def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json of a run or of search, or edited by hand")],
    model: options.Model,
    data: options.Data,
    target: options.TargetName,
    out: Annotated[Path, typer.Option(help="folder for the results")],
    evaluate: options.Evaluate = None,
    score: options.ScoreSpec = None,
    rounding: options.Rounding = "nearest",
    ranges: options.Ranges = "mse",
    importance: options.Importance = "magnitude",
    bias_correction: options.BiasCorrection = "at_once",
    reestimate_bn: options.ReestimateBatchNorms = False,
    equalize: options.Equalize = False,
    flavour: Annotated[str, typer.Option(help="static, or qat (fine-tunes)")] = "static",
    epochs: options.Epochs = None,
    train: options.Train = None,
    lr: options.LearningRate = None,
    dynamic: options.Dynamic = None,
    samples: options.Samples = None,
    task: options.TaskName = None,
    output_weight: options.OutputWeights = None,
    loss: options.LossSpec = None,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    force: options.Force = False,
    as_json: options.AsJson = False,
    *,
    read: options.Read,
) -> None:
    """Deploy a plan: calibrate, quantize, export, run the artefact and compare."""
    from mixbit.core import Plan

    out = out.absolute()  # the user's code may change the working folder
    check_writable_folder(out, force=force)  # before torch is loaded
    given, _ = Plan.load(plan), find_target(target)
    from mixbit.core import absolute, load_function
    from mixbit.pipeline.auto import auto_quantize
    from mixbit.pipeline.settings import Settings, check_given
    from mixbit.training.loop import Training

    if flavour != "qat":
        refuse({"epochs": epochs, "train": train, "lr": lr}, "only --flavour qat trains")
    settings = Settings(
        rounding=options.function_or_name(rounding, "ROUNDING"),
        importance=importance,
        score=None if score is None else load_function(score, "SCORE"),
        ranges=options.function_or_name(ranges, "RANGES"),
        bias_correction=bias_correction,
        reestimate_batch_norms=reestimate_bn,
        equalize=equalize,
        flavour=flavour,
        epochs=3 if epochs is None else epochs,
        training=Training() if lr is None else Training(lr=lr),
        dynamic=options.dynamic_of(dynamic),
        seed=seed,
        samples=samples,
        model=absolute(model),
        command=("mixbit", *sys.argv[1:]),
    )
    settings.check()
    check_given(given, target, settings)
    reading = read(seed=seed)
    network = options.model_on(model, device)
    meant = options.task_of(task, loss, output_weight, network)
    batches, noted = options.data_of({"data": data, "eval": evaluate, "train": train}, network, reading, meant)
    settings = replace(settings, task=meant, train_batches=batches["train"], **noted)
    with redirect_stdout(sys.stderr):  # standard output is for results, whatever the user's code prints
        deployed = auto_quantize(
            network.module,
            batches["data"],
            target=target,
            plan=given,
            out=out,
            eval_batches=batches["eval"],
            settings=settings,
            force=force,
        )
    print_deployed(deployed, as_json=as_json)
