"""`mixbit quantize`: the whole loop."""

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_rows, refuse, say_what_runs_in_float
from mixbit.core import Budget, InvalidInput, MaxDrop, check_writable_folder, find_target, say

if TYPE_CHECKING:
    from mixbit.datasets.load import Reading
    from mixbit.pipeline.deploy import Deployed
    from mixbit.results.result import Result


@options.with_reading
def quantize(
    model: options.Model,
    data: options.Data,
    target: options.TargetName,
    out: Annotated[Path, typer.Option(help="folder for the results")],
    budget: Annotated[list[str] | None, options.BUDGET] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="instead of a budget: largest loss of accuracy, e.g. 1% (without labels: nats)")
    ] = None,
    evaluate: Annotated[str | None, typer.Option("--eval", help="DATA to report on and to check --max-drop")] = None,
    nncf_config: Annotated[Path | None, typer.Option(help="NNCF 2's file.json: hawq, autoq or manual bits")] = None,
    choices: options.Choices = None,
    pin: options.Pins = None,
    metric: options.Metric = "fisher",
    search: options.Search = "ilp",
    warm_start: Annotated[bool, typer.Option("--warm-start", help="autoq starts from the plan of ilp")] = False,
    importance: options.Importance = "magnitude",
    score: options.ScoreSpec = None,
    eval_subset_ratio: Annotated[float, typer.Option(help="share of calibration batches to try plans on")] = 1.0,
    eval_timeout: Annotated[float | None, typer.Option(help="longest time to try one plan, in seconds")] = None,
    rounding: options.Rounding = "nearest",
    ranges: options.Ranges = "mse",
    bias_correction: options.BiasCorrection = "at_once",
    reestimate_bn: options.ReestimateBatchNorms = False,
    equalize: options.Equalize = False,
    prune_channels: Annotated[float, typer.Option(help="share of output channels to remove first, as in 0.3")] = 0.0,
    flavour: Annotated[str, typer.Option(help="static, dynamic, or qat (fine-tunes)")] = "static",
    epochs: options.Epochs = None,
    train: options.Train = None,
    lr: options.LearningRate = None,
    dynamic: options.Dynamic = None,
    samples: options.Samples = None,
    task: options.TaskName = None,
    output_weight: options.OutputWeights = None,
    loss: options.LossSpec = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="leave inputs in float where quantizing them makes nothing faster")
    ] = False,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    processes: options.Sharing = None,
    engine: options.EngineName = "local",
    ray_address: options.RayAddress = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    *,
    read: options.Read,
) -> None:
    """Measure, search, quantize, export, run the artefact and compare."""
    out = out.absolute()  # the user's code may change the working folder
    check_writable_folder(out, force=force)  # before torch is loaded
    from mixbit.core import absolute, load_function
    from mixbit.pipeline.auto import auto_quantize
    from mixbit.pipeline.settings import Settings
    from mixbit.quantization.shared import Shared
    from mixbit.training.loop import Training

    if flavour != "qat":
        refuse({"epochs": epochs, "train": train, "lr": lr}, "only --flavour qat trains")
    pins, offered = options.pins_of(pin), options.split(choices)
    for_trials = {"search": search, "eval_subset_ratio": eval_subset_ratio}
    if nncf_config is not None:
        refuse({"max_drop": max_drop, "metric": metric} | for_trials, "the configuration of --nncf-config has its own")
        from mixbit.app.nncf import read_nncf_config

        config = read_nncf_config(nncf_config, find_target(target), Budget.parse(budget) if budget else None)
        for key, note in config.notes.items():
            say(f"{nncf_config.name}: {key}: {note}")
        metric, search, eval_subset_ratio = config.metric, config.search, config.eval_subset_ratio
        limits, pins, offered = config.budget, config.pins | pins, offered or list(config.choices)
    elif (max_drop is None) == (not budget):
        raise InvalidInput("give --budget, as in --budget mean_bits=4, or --max-drop, as --max-drop 1%; one of the two")
    elif max_drop is None:
        limits = Budget.parse(budget or [])
    else:
        limits = Budget(max_drop=MaxDrop.parse(max_drop))
        refuse(for_trials | {"warm_start": warm_start}, "--max-drop looks along the front, on --eval")
    options.check_importance(importance, offered, pins)
    settings = Settings(
        task=options.task_of(task, loss, output_weight),
        choices=offered,
        metric=options.function_or_name(metric, "METRIC"),
        search=options.function_or_name(_warm(search) if warm_start else search, "SEARCH"),
        rounding=options.function_or_name(rounding, "ROUNDING"),
        importance=importance,
        pins=pins,
        score=None if score is None else load_function(score, "SCORE"),
        eval_subset_ratio=eval_subset_ratio,
        eval_timeout_s=eval_timeout,
        ranges=options.function_or_name(ranges, "RANGES"),
        bias_correction=bias_correction,
        reestimate_batch_norms=reestimate_bn,
        equalize=equalize,
        prune_channels=prune_channels,
        flavour=flavour,
        epochs=3 if epochs is None else epochs,
        training=Training() if lr is None else Training(lr=lr),
        dynamic=options.dynamic_of(dynamic),
        seed=seed,
        fast=fast,
        samples=samples,
        model=absolute(model),
        command=("mixbit", *sys.argv[1:]),
    )
    settings.check()
    reading, shared_by = read(seed=seed), options.sharing_of(engine, processes, ray_address)
    words, place = (task, loss, output_weight), str(options.device_of(device))
    setup = partial(load_given, model, (data, evaluate), words, place, reading)
    shared = None if shared_by is None else Shared(setup, shared_by)
    options.say_unless_used(loss, metric)
    network = options.model_on(model, device)
    meant = options.task_of(task, loss, output_weight, network)
    batches, noted = options.data_of({"data": data, "eval": evaluate, "train": train}, network, reading, meant)
    settings = replace(settings, task=meant, train_batches=batches["train"], **noted)
    with redirect_stdout(sys.stderr):  # standard output is for results, whatever the user's code prints
        deployed = auto_quantize(
            network.module,
            batches["data"],
            target=target,
            budget=limits,
            out=out,
            eval_batches=batches["eval"],
            settings=settings,
            shared=shared,
            force=force,
        )
    print_deployed(deployed, as_json=as_json)


def load_given(
    model: str,
    data: tuple[str, str | None],
    task: tuple[str | None, str | None, list[str] | None],
    device: str,
    reading: "Reading",
) -> tuple[Any, ...]:
    """In a process that shares the work: MODEL, DATA to calibrate and to report on, and the task with its loss."""
    network = options.model_on(model, device)
    meant = options.task_of(*task, network)
    read, *_ = options.data_of(dict(zip(("data", "eval"), data, strict=True)), network, reading, meant)
    return network.module, read["data"], read["eval"], meant


def _warm(search: str) -> str:
    """The search with its option warm_start."""
    name, _, options = search.partition(":")
    if name != "autoq":
        raise InvalidInput(f"--warm-start is for the search autoq, not {search}")
    return f"{name}:{options},warm_start=true" if options else f"{name}:warm_start=true"


def print_deployed(deployed: "Deployed", *, as_json: bool) -> None:
    """Print the result; raise TargetMismatch where the artefact is not as promised."""
    if as_json:
        print(deployed.result.to_json(), end="")
    else:
        print_result(deployed.result)
        if deployed.table is not None:
            if deployed.result.speed.startswith("slower") and not deployed.result.settings.get("fast"):
                say("--fast leaves inputs in float wherever quantizing them makes nothing faster")
            say(deployed.table.verdict)
        say(f"{deployed.comparison}\nwritten to {deployed.folder}")
    deployed.comparison.check()


def print_result(result: "Result") -> None:
    """Print the figures of a run, its plan, and how it was chosen."""
    from mixbit.results.result import in_float

    networks = [("float", result.float_), ("simulated", result.simulated)]
    if result.untrained:
        networks.insert(1, ("before fine-tuning, simulated", result.untrained))
    networks += [(f"uniform {row['scheme']}, simulated", row) for row in result.uniform]
    rows = [(name, *_cells(row)) for name, row in (*networks, ("deployed", result.deployed))]
    print_rows(result.target, ("network", "accuracy", "weight bytes", "file bytes", "ms", "agreement"), rows)
    layers = [(name, row.scheme, row.executed) for name, row in result.layers.items()]
    print_rows("plan", ("layer", "scheme", "executed"), layers)
    if result.pruned is not None:
        say(f"{result.pruned}; --flavour qat --train DATA fine-tunes what is left")
    say(result.chosen)
    say(result.speed)
    say_what_runs_in_float(in_float(result.layers), len(layers))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "predicted_bytes" in row:  # stands for the bytes of what is only simulated
        row = {"weight_bytes": row["predicted_bytes"]} | row
    forms = {"accuracy": ".2%", "weight_bytes": ",.0f", "file_bytes": ",.0f", "latency_ms": ".3f", "agreement": ".2%"}
    return tuple(format(row[name], form) if name in row else "" for name, form in forms.items())
