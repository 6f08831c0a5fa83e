"""`mixbit apply`: a plan file, deployed."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.commands.quantize import load_given, print_deployed
from mixbit.app.commands.steps import load_case
from mixbit.core import InvalidInput, check_writable_folder, find_target, say

if TYPE_CHECKING:
    from mixbit.core import Plan, Room
    from mixbit.datasets.load import Reading
    from mixbit.pipeline.settings import Settings


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
    """Deploy a plan: calibrate, quantize, export, run the artefact and compare; with --memory, up to export."""
    from mixbit.core import Plan

    out = out.absolute()  # the user's code may change the working folder
    check_writable_folder(out, force=force)  # before torch is loaded
    given, _ = Plan.load(plan), find_target(target)
    room = options.room_of(memory, scratch, device)
    from mixbit.core import absolute, load_function
    from mixbit.pipeline.auto import auto_quantize
    from mixbit.pipeline.settings import Settings, check_given
    from mixbit.quantization.shared import Shared
    from mixbit.roundings import check_shared_out
    from mixbit.training.loop import Training

    if flavour != "qat":
        options.refuse({"epochs": epochs, "train": train, "lr": lr}, "only --flavour qat trains")
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
    reading, shared_by = read(seed=seed), options.sharing_of(engine, processes, ray_address, room)
    if shared_by is not None:
        check_shared_out(settings.rounding)
    if room is not None:
        others = {
            "eval": evaluate,
            "score": score,
            "reestimate_bn": reestimate_bn,
            "equalize": equalize,
        }
        options.refuse(others, "with --memory the file is written, and not run")
        if flavour != "static" or importance != "magnitude":
            raise InvalidInput("--memory: networks are not trained so; leave --flavour and --importance out")
        words = task, loss, output_weight
        write_from_files(settings, given, room, data, reading, out, words, force=force)
        if as_json:
            options.print_json({"folder": str(out)})
        return
    words, place = (task, loss, output_weight), str(options.device_of(device))
    setup = partial(load_given, model, (data, evaluate), words, place, reading)
    shared = None if shared_by is None else Shared(setup, shared_by)
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
            shared=shared,
            force=force,
        )
    print_deployed(deployed, as_json=as_json)


def write_from_files(
    settings: "Settings",
    plan: "Plan",
    room: "Room",
    data: str,
    reading: "Reading",
    out: Path,
    task: tuple[str | None, str | None, list[str] | None],
    *,
    force: bool,
) -> None:
    """Calibrate, quantize and write a network whose weights stay in files, layer by layer."""
    from mixbit.quantization.calibrate import calibrate
    from mixbit.roundings.quantize import quantize
    from mixbit.targets.export import check_exportable, check_written_by_layer, export

    check_written_by_layer(find_target(plan.target))
    with redirect_stdout(sys.stderr):
        how = dict(settings.dynamic), settings.samples, reading, out.parent
        graph, batches, meant = load_case(str(settings.model), data, task, "cpu", *how, room)
        check_exportable(graph)
        calibration = calibrate(graph, batches, target=plan.target, ranges=settings.ranges)
        small = quantize(
            graph,
            plan,
            calibration,
            rounding=settings.rounding,
            bias_correction=settings.bias_correction,
            task=meant,
            seed=settings.seed,
        )
        export(small, out, force=force)
    say(f"written to {out}; not run: that takes the whole network in memory")
