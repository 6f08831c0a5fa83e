"""The command line: parse, call, print. Figures and tables go to standard output, progress and messages to error."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from mixbit.errors import InvalidInput, MixbitError
from mixbit.printing import (
    print_json,
    print_prices,
    print_result,
    print_rows,
    print_sensitivities,
    print_study,
    say,
    say_what_runs_in_float,
)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

INTERRUPTED = 130

Model = Annotated[str, typer.Argument(metavar="MODEL", help="file.py:function or package.module:function")]
Data = Annotated[str, typer.Option("--data", help="DATA: calibration batches; the same form as MODEL")]
TargetName = Annotated[str, typer.Option("--target", help="onnxruntime, openvino or packed")]
Budgets = Annotated[
    list[str], typer.Option("--budget", help="name=value, as in mean_bits=4; several may stand together")
]
Choices = Annotated[str | None, typer.Option("--choices", help="schemes, as in w4a8,w8a8")]
TaskName = Annotated[str, typer.Option("--task", help="classification, segmentation, language or regression")]
LossSpec = Annotated[
    str | None,
    typer.Option("--loss", help="file.py:function of (output, labels), for metrics; the task's own otherwise"),
]
Device = Annotated[str, typer.Option("--device", help="where the model runs, as in cpu or cuda")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="of every draw")]
Force = Annotated[bool, typer.Option("--force", help="replace files of the same names in --out")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Metric = Annotated[
    str,
    typer.Option("--metric", help="see: mixbit list metrics; with options as in hawq:vectors=20; or file.py:function"),
]
SearchName = "see: mixbit list searches; with options as in mixquant:multiplier=4"
Pins = Annotated[
    list[str] | None,
    typer.Option("--pin", help="NAME=SCHEME, as in 'conv1.weight=w8a8' or 'blocks.*=w4a8'; several may stand"),
]


Ranges = Annotated[
    str,
    typer.Option("--ranges", help="of activations, see: mixbit list ranges; with options as in percentile:share=0.999"),
]


@app.command()
def quantize(
    model: Model,
    data: Data,
    target: TargetName,
    out: Annotated[Path, typer.Option("--out", help="folder for the results")],
    budget: Annotated[
        list[str] | None, typer.Option("--budget", help="name=value, as in mean_bits=4; several may stand together")
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option("--max-drop", help="in place of a budget: as in 1%, one point of accuracy; without labels, nats"),
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option("--eval", help="DATA to report accuracy on, and to take --max-drop on")
    ] = None,
    nncf_config: Annotated[
        Path | None,
        typer.Option(
            "--nncf-config", help="file.json of NNCF 2 with hawq, autoq or manual precisions, to be taken over"
        ),
    ] = None,
    choices: Choices = None,
    pin: Pins = None,
    metric: Metric = "fisher",
    search: Annotated[str, typer.Option("--search", help=SearchName)] = "ilp",
    warm_start: Annotated[bool, typer.Option("--warm-start", help="autoq starts from the plan of ilp")] = False,
    importance: Annotated[
        str, typer.Option("--importance", help="which weights sparse schemes zero first: magnitude, or fisher")
    ] = "magnitude",
    score: Annotated[
        str | None,
        typer.Option("--score", help="file.py:function of (model, batches), the higher the better, to try plans by"),
    ] = None,
    eval_subset_ratio: Annotated[
        float, typer.Option("--eval-subset-ratio", help="share of the calibration batches that plans are tried on")
    ] = 1.0,
    eval_timeout: Annotated[
        float | None, typer.Option("--eval-timeout", help="seconds that trying one plan may take")
    ] = None,
    rounding: Annotated[
        str, typer.Option("--rounding", help="see: mixbit list roundings; with options as in brecq:iterations=500")
    ] = "nearest",
    ranges: Ranges = "mse",
    bias_correction: Annotated[str, typer.Option("--bias-correction", help="at_once, sequential or off")] = "at_once",
    reestimate_bn: Annotated[
        bool, typer.Option("--reestimate-bn", help="batch norms take their statistics from the calibration data")
    ] = False,
    equalize: Annotated[
        bool, typer.Option("--equalize", help="scale channels between layers first: for depthwise networks")
    ] = False,
    prune_channels: Annotated[
        float, typer.Option("--prune-channels", help="share of output channels to remove first, as in 0.3")
    ] = 0.0,
    flavour: Annotated[str, typer.Option("--flavour", help="static, dynamic, or qat, which fine-tunes")] = "static",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="of --flavour qat; 3 where left out")] = None,
    train: Annotated[
        str | None, typer.Option("--train", help="DATA to fine-tune on; the calibration data where left out")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="largest learning rate of --flavour qat")] = None,
    task: TaskName = "classification",
    loss: LossSpec = None,
    device: Device = "cpu",
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure, search, quantize, export, run the artefact and compare."""
    from mixbit.flavours import FLAVOURS
    from mixbit.pipeline import auto_quantize
    from mixbit.settings import Settings
    from mixbit.specs import absolute, load_data, load_function, load_loader, load_task
    from mixbit.training.loop import Training

    _known("flavour", flavour, tuple(FLAVOURS))
    if flavour != "qat":
        _refuse({"epochs": epochs, "train": train, "lr": lr}, "only --flavour qat trains")
    pins, offered = _pins(pin), _split(choices)
    for_trials = {"search": search, "eval_subset_ratio": eval_subset_ratio}
    if nncf_config is None:
        limits = _budget(budget, max_drop)
        if max_drop is not None:
            _refuse(for_trials | {"warm_start": warm_start}, "--max-drop looks along the front, on --eval")
    else:
        taken = _nncf(nncf_config, target, budget, max_drop=max_drop, metric=metric, **for_trials)
        limits, metric, search, eval_subset_ratio = taken.budget, taken.metric, taken.search, taken.eval_subset_ratio
        pins, offered = taken.pins | pins, offered or list(taken.choices)
    settings = Settings(
        task=load_task(task, loss),
        choices=offered,
        metric=_function_or_name(metric, "METRIC"),
        search=_function_or_name(_warm(search) if warm_start else search, "SEARCH"),
        rounding=_function_or_name(rounding, "ROUNDING"),
        importance=importance,
        pins=pins,
        score=None if score is None else load_function(score, "SCORE"),
        eval_subset_ratio=eval_subset_ratio,
        eval_timeout_s=eval_timeout,
        ranges=_function_or_name(ranges, "RANGES"),
        bias_correction=bias_correction,
        reestimate_batch_norms=reestimate_bn,
        equalize=equalize,
        prune_channels=prune_channels,
        flavour=flavour,
        epochs=3 if epochs is None else epochs,
        training=Training() if lr is None else Training(lr=lr),
        train_batches=None if train is None else load_loader(train),
        seed=seed,
        model=absolute(model),
    )
    _say_unless_used(loss, metric)
    module, batches = _model(model, device), load_data(data)
    eval_batches = None if evaluate is None else load_data(evaluate)
    with redirect_stdout(sys.stderr):  # standard output is for results, whatever the user's code prints
        deployed = auto_quantize(
            module,
            batches,
            target=target,
            budget=limits,
            out=out,
            eval_batches=eval_batches,
            settings=settings,
            force=force,
        )
    if as_json:
        print(deployed.result.to_json(), end="")
    else:
        print_result(deployed.result)
        say(f"{deployed.table.verdict}\n{deployed.comparison}\nwritten to {out}")
    deployed.comparison.check()


@app.command()
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
    from mixbit.batches import split_batches
    from mixbit.calibrate import calibrate
    from mixbit.files import check_new_file
    from mixbit.graph import capture
    from mixbit.layers import find_layers
    from mixbit.measurement import measure as measure_
    from mixbit.specs import load_data, load_task
    from mixbit.timing import timed

    check_new_file(out, force=force)
    _say_unless_used(loss, metric)
    module = _model(model, device)
    batches = split_batches(module, load_data(data))
    with redirect_stdout(sys.stderr):
        graph = capture(module, batches[0][0])
        inputs = [inputs for inputs, _ in batches]
        calibration = calibrate(graph, find_layers(graph), inputs, ranges=_function_or_name(ranges, "RANGES"))
        table = measure_(
            graph,
            batches,
            target=target,
            task=load_task(task, loss),
            metric=_function_or_name(metric, "METRIC"),
            choices=_split(choices),
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


@app.command()
def search(
    sensitivity: Annotated[
        Path, typer.Argument(help="sensitivity.json, as measure wrote it; or front.json, as front did")
    ],
    budget: Budgets,
    out: Annotated[Path, typer.Option("--out", help="plan.json")],
    method: Annotated[str, typer.Option("--method", help=SearchName)] = "ilp",
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
        table = table.pinned(_pins(pin))
        plan = priced(table, limits, search_(table, limits, method=_function_or_name(method, "SEARCH")))
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


@app.command()
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
    found = front_(Sensitivity.load(sensitivity).pinned(_pins(pin)), resource)
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


@app.command()
def verify(folder: Annotated[Path, typer.Argument(metavar="DIR")], as_json: AsJson = False) -> None:
    """Run the artefact in DIR on its check set and compare it with the simulation and the prediction."""
    from mixbit.recheck import recheck

    comparison = recheck(folder)
    if as_json:
        print_json(vars(comparison))
    else:
        print(comparison)
    comparison.check()


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, max=2**20, help="batch sizes; 1 and 32 by default")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time the artefact in DIR, and say for every layer how it is stored and how the runtime executed it."""
    from mixbit.recheck import bench as bench_

    report = bench_(folder, tuple(batch or (1, 32)))
    if as_json:
        print_json(report)
        return
    rows = [
        (name, row["scheme"], f"{row['weight_bytes']:,}", row["stored"], row["executed"])
        for name, row in report["layers"].items()
    ]
    print_rows("layers", ("layer", "scheme", "bytes", "stored", "executed"), rows)
    latency, default = report["latency_ms"], report["default_latency_ms"]
    timed = [(size, f"{latency[size]:.3f}", f"{default[size]:.3f}") for size in latency]
    print_rows("latency", ("batch", "ms", "ms with the runtime's default settings"), timed)
    say_what_runs_in_float(report["in_float"], len(rows))


@app.command()
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
            partial(load_subject, model, (data, evaluate), task, loss, str(_device(device))),
            target=target,
            out=out,
            choices=_split(choices),
            metrics=_split(metrics),
            plans=RandomPlans(plans, near, seed),
            processes=processes,
            force=force,
        )
    if as_json:
        print(found.to_json(), end="")
    else:
        print_study(found)
        say(f"written to {out}")


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", help="keep the folders here")] = None,
    as_json: AsJson = False,
) -> None:
    """The whole loop on the shipped network and data, for OpenVINO and onnxruntime."""
    from mixbit.demo import COLUMNS, run_demo

    rows = run_demo(out)
    if as_json:
        print_json({"rows": [vars(row) for row in rows]})
    else:
        print_rows("handwritten digits", COLUMNS, [row.cells() for row in rows])
        say("every file ran in its runtime and matches its simulation and the predicted bytes")
        if out is not None:
            say(f"written to {out}; try: mixbit bench {out}/openvino-mixed")


#: Rows of a front that are printed.
ROWS = 20
ADVICE = (
    "float16 where a GPU computes; w8a8 and narrower where a CPU does, which is faster than float in integers alone; "
    "w8a8d and the like for transformers without calibration data"
)
LISTS = ("targets", "metrics", "searches", "ranges", "roundings")


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(help=" | ".join(LISTS))], as_json: AsJson = False) -> None:
    """Name the targets, metrics, searches, ranges of activations or roundings."""
    _known("list", what, LISTS)
    rows = _LISTS[what]()
    if as_json:
        print_json(dict(rows))
    else:
        print_rows(what, ("name", "what it does"), rows)
    if what == "targets":
        say(ADVICE)


def _targets() -> list[tuple[str, str]]:
    from mixbit.target import TARGETS, find_target

    found = [find_target(name) for name in TARGETS]
    widths = [f"weights {_widths(one.weight_bits)} bits, inputs {_widths(one.input_bits)} or float" for one in found]
    return [
        (one.name, f"{text}: {one.note}; also {', '.join(sorted(one.features))}")
        for one, text in zip(found, widths, strict=True)
    ]


def _widths(bits: tuple[int, ...]) -> str:
    return ", ".join(str(one) for one in bits)


def _methods(methods: dict[str, Callable[..., Any]]) -> list[tuple[str, str]]:
    return [(name, (method.__doc__ or "").strip().splitlines()[0]) for name, method in methods.items()]


def _metrics() -> list[tuple[str, str]]:
    from mixbit.metrics import METRICS

    return _methods(METRICS)


def _searches() -> list[tuple[str, str]]:
    from mixbit.search import SEARCHES

    return _methods(SEARCHES)


def _ranges() -> list[tuple[str, str]]:
    from mixbit.ranges import RANGES

    return _methods(RANGES)


def _roundings() -> list[tuple[str, str]]:
    from mixbit.rounding import ROUNDINGS

    return _methods(ROUNDINGS)


_LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "targets": _targets,
    "metrics": _metrics,
    "searches": _searches,
    "ranges": _ranges,
    "roundings": _roundings,
}


def _known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise InvalidInput(f"{what} {name!r} is unknown; known: {', '.join(known)}")


def _budget(budget: list[str] | None, max_drop: str | None) -> Any:
    from mixbit.budget import Budget, MaxDrop

    if (max_drop is None) == (not budget):
        raise InvalidInput(
            "give --budget, as in --budget mean_bits=4, or --max-drop, as in --max-drop 1%; one of the two"
        )
    return Budget.parse(budget or []) if max_drop is None else MaxDrop.parse(max_drop)


def _nncf(path: Path, target: str, budget: list[str] | None, **others: Any) -> Any:
    """The configuration, with the command line's budget in the place of its own where one is given."""
    from mixbit.budget import Budget
    from mixbit.nncf_config import read_nncf_config
    from mixbit.target import find_target

    _refuse(others, "the configuration of --nncf-config has its own")
    found = read_nncf_config(path, find_target(target), Budget.parse(budget) if budget else None)
    for key, note in found.notes.items():
        say(f"{path.name}: {key}: {note}")
    return found


def _refuse(given: dict[str, Any], why: str) -> None:
    """Raise InvalidInput for the first option that is given: that is not what it is by default."""
    for name, value in given.items():
        if value not in (None, False, 1.0, "ilp", "fisher"):
            raise InvalidInput(f"--{name.replace('_', '-')} {value}: {why}; leave it out")


def _pins(texts: list[str] | None) -> dict[str, str]:
    """Pattern -> scheme of `NAME=SCHEME` texts."""
    from mixbit.scheme import Scheme

    pins: dict[str, str] = {}
    for text in texts or []:
        pattern, _, scheme = text.rpartition("=")
        if not pattern or pattern in pins:
            raise InvalidInput(
                f"pin {text!r} is not understood; write NAME=SCHEME, as in conv1.weight=w8a8, each name once"
            )
        pins[pattern] = str(Scheme.parse(scheme))
    return pins


def _warm(search: str) -> str:
    """The search with its option warm_start."""
    name, _, options = search.partition(":")
    if name != "autoq":
        raise InvalidInput(f"--warm-start is for the search autoq, not {search}")
    return f"{name}:{options},warm_start=true" if options else f"{name}:warm_start=true"


def _function_or_name(name: str, what: str) -> Any:
    """A function where the name is one of a file or package, as `file.py:function`; else the name."""
    place, _, function = name.rpartition(":")
    if not place.endswith(".py") and ("=" in function or "." not in place):
        return name
    from mixbit.specs import load_function

    return load_function(name, what)


def _say_unless_used(loss: str | None, metric: str) -> None:
    from mixbit.metrics import WITHOUT_LOSS

    if loss is not None and metric in WITHOUT_LOSS:
        say(f"--loss {loss}: the metric {metric} looks at no loss; take another, as fisher")


def _split(choices: str | None) -> list[str] | None:
    return None if choices is None else [one.strip() for one in choices.split(",")]


def _model(spec: str, device: str) -> Any:
    from mixbit.specs import load_model

    model = load_model(spec).to(_device(device))
    if model.training:
        say(f"MODEL {spec}: in training mode; it is run in eval mode: no dropout, batch norms as trained")
    return model


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InvalidInput(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def main() -> None:
    """Run the command line; exit 0 done, 2 bad input, 3 infeasible budget, 4 not as promised, 130 interrupted."""
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:
            say("mixbit: interrupted")
        sys.exit(status)
    except typer.TyperException as error:  # wrong usage: an unknown option, a missing argument
        say(f"mixbit: {error.format_message().rstrip('.') or 'give a command'}; see mixbit --help")
        sys.exit(InvalidInput.exit_code)
    except MixbitError as error:
        say(f"mixbit: {error}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        say("mixbit: interrupted")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
