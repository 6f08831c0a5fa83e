"""What commands share: options, how their values are read, and how results and messages are printed."""

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial, wraps
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixbit.core import (
    METHOD_PLACES,
    RESOURCES,
    TARGETS,
    Engine,
    InvalidInput,
    Scheme,
    clean,
    described_methods,
    facts_of,
    pick,
    say,
    show,
)

if TYPE_CHECKING:
    from mixbit.core import Room, Task
    from mixbit.datasets.load import Reading
    from mixbit.models.load import LoadedModel

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="file.py:function, package.module:function, net.onnx, net.pt2, or a folder with config.json",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="DATA to calibrate on: a function, as MODEL; a folder or zip of pictures; .npz, .npy or .safetensors; "
        ".txt; .csv or .tsv"
    ),
]


def completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """For the shell: those of the names that begin as the word does."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def _methods(kind: str) -> Callable[[str], list[str]]:
    return completing(lambda: described_methods(METHOD_PLACES[kind]))


#: Texts of options of so few values that a shell completes them.
TASKS = ("classification", "segmentation", "language", "regression", "multilabel", "ctc", "detection")
TargetName = Annotated[
    str,
    typer.Option(
        help="onnxruntime, openvino, litert, ethosu, executorch, compressed_tensors, qonnx or packed",
        autocompletion=completing(lambda: TARGETS),
    ),
]
BUDGET = typer.Option(
    help="name=value, as in mean_bits=4, see: mixbit list budgets; may be repeated",
    autocompletion=completing(lambda: [f"{name}=" for name in RESOURCES]),
)
Choices = Annotated[str | None, typer.Option(help="schemes to choose from, as in w4a8,w8a8")]
TaskName = Annotated[
    str | None,
    typer.Option(
        help="classification, segmentation, language, regression, multilabel, ctc, detection, or several outputs: "
        "multi:0=classification,boxes=regression; by default what MODEL tells, else classification",
        autocompletion=completing(lambda: TASKS),
    ),
]
OutputWeights = Annotated[
    list[str] | None, typer.Option(help="NAME=NUMBER, how much an output counts beside the others, 1 each; repeatable")
]
LossSpec = Annotated[str | None, typer.Option(help="for metrics: file.py:function(output, labels); else the task's")]
Device = Annotated[str, typer.Option(help="where the model runs: cpu or cuda")]
Memory = Annotated[
    str | None,
    typer.Option(help="leave MODEL's weights in their files, and take so much memory, as 4GB; else all are loaded"),
]
Scratch = Annotated[
    Path | None,
    typer.Option(help="with --memory: folder for activations and scales; else that for temporary files"),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="random seed")]
Force = Annotated[bool, typer.Option("--force", help="replace files of the same names in --out")]
EngineName = Annotated[str, typer.Option("--engine", help="where work is shared out: local or ray")]
Processes = Annotated[int, typer.Option(min=1, help="how many share the work, one thread each")]
Sharing = Annotated[
    int | None, typer.Option("--processes", min=1, help="share the work among so many, one thread each; the same bits")
]
RayAddress = Annotated[str | None, typer.Option(help="auto, HOST:PORT or ray://HOST:PORT; none: one for this run")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]

Metric = Annotated[
    str,
    typer.Option(
        help="see: mixbit list metrics; options as hawq:vectors=20; or file.py:function",
        autocompletion=_methods("metrics"),
    ),
]
Search = Annotated[
    str,
    typer.Option(
        help="see: mixbit list searches; with options as in mixquant:multiplier=4", autocompletion=_methods("searches")
    ),
]
Rounding = Annotated[
    str,
    typer.Option(help="see: mixbit list roundings; as brecq:iterations=500", autocompletion=_methods("roundings")),
]
Evaluate = Annotated[str | None, typer.Option("--eval", help="DATA to report on")]
ScoreSpec = Annotated[
    str | None, typer.Option(help="file.py:function of (model, batches) that scores a plan; higher is better")
]
Importance = Annotated[str, typer.Option(help="sparse schemes choose zeros by magnitude or fisher")]
BiasCorrection = Annotated[str, typer.Option(help="at_once, sequential or off")]
ReestimateBatchNorms = Annotated[
    bool, typer.Option("--reestimate-bn", help="take statistics of batch norms from the calibration data")
]
Equalize = Annotated[
    bool, typer.Option("--equalize", help="scale channels between layers first, for depthwise networks")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="epochs of --flavour qat; 3 by default")]
Train = Annotated[str | None, typer.Option(help="DATA to fine-tune on; by default the calibration data")]
LearningRate = Annotated[float | None, typer.Option(help="largest learning rate of --flavour qat")]
Pins = Annotated[list[str] | None, typer.Option(help="NAME=SCHEME, as conv1.weight=w8a8 or blocks.*=w4a8; repeatable")]
Dynamic = Annotated[
    list[str] | None, typer.Option(help="INPUT:DIMENSION,..., of any size, as input_ids:1 or 0:2,3; may be repeated")
]
Samples = Annotated[int | None, typer.Option(min=1, help="take the first so many samples of --data; else all")]
#: Options by which DATA is read from files -> their types and values where none is given.
READING: dict[str, tuple[Any, Any]] = {
    "batch_size": (
        Annotated[int | None, typer.Option(min=1, help="samples in a batch of DATA that is no function; else 32")],
        None,
    ),
    "image_size": (Annotated[str | None, typer.Option(help="HxW, as 224x224, that pictures are resized to")], None),
    "mean": (Annotated[str | None, typer.Option(help="taken off pixels of 0 to 1, as 0.5 or 0.485,0.456,0.406")], None),
    "std": (Annotated[str | None, typer.Option(help="divides pixels then, as 0.5 or 0.229,0.224,0.225")], None),
    "skip_broken": (
        Annotated[bool, typer.Option("--skip-broken", help="leave out pictures that cannot be read, and name them")],
        False,
    ),
    "length": (
        Annotated[
            int | None,
            typer.Option(min=1, help="tokens of a sample of text; else what the model takes, 512 at most"),
        ],
        None,
    ),
}
#: Heading in --help -> the options below it; the others stand before.
HEADINGS = {
    "DATA and what it means": (
        "data", "evaluate", "train", "samples", *READING, "dynamic", "task", "output_weight", "loss", "score",
    ),
    "Methods": (
        "metric", "search", "ranges", "rounding", "importance", "bias_correction", "reestimate_bn", "equalize",
        "prune_channels", "nncf_config", "warm_start", "eval_subset_ratio", "eval_timeout",
    ),
    "Training": ("flavour", "epochs", "lr"),
}  # fmt: skip
#: What makes a Reading of them, and of `seed`.
Read = Callable[..., Any]
Ranges = Annotated[
    str,
    typer.Option(
        help="ranges of activations, see: mixbit list ranges; as percentile:share=0.999",
        autocompletion=_methods("ranges"),
    ),
]


def with_quiet(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option --quiet, before which it shows nothing but results, warnings and errors."""

    @wraps(command)
    def run(*args: Any, quiet: bool = False, **options: Any) -> None:
        if quiet:
            show("nothing")
        command(*args, **options)

    words = typer.Option("--quiet", help="no progress and no messages: results, warnings and errors alone")
    option = _option("quiet", Annotated[bool, words], False)
    return _taking(run, [*inspect.signature(command).parameters.values(), option])


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options by which DATA is read from files, behind --samples.

    The command gets `read`, which makes a Reading of them and a seed.
    """

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        given = {name: options.pop(name) for name in READING}
        command(*args, **options, read=partial(reading_of, **given))

    parameters = [each for each in inspect.signature(command).parameters.values() if each.name != "read"]
    behind = next(place for place, each in enumerate(parameters, 1) if each.name == "samples")
    more = [_option(name, kind, default) for name, (kind, default) in READING.items()]
    return _taking(run, [*parameters[:behind], *more, *parameters[behind:]])


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _taking(run: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """The function with these parameters, as typer reads them, below HEADINGS."""
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    headings = {option: heading for heading, options in HEADINGS.items() for option in options}
    for each in named:
        for words in getattr(each.annotation, "__metadata__", ()):
            words.rich_help_panel = headings.get(each.name)
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined] as inspect reads it
    return run


def reading_of(
    *,
    batch_size: int | None,
    image_size: str | None,
    mean: str | None,
    std: str | None,
    skip_broken: bool,
    length: int | None,
    seed: int,
) -> "Reading":
    """How DATA is read; raises InvalidInput for a text that is not understood, or a number out of range."""
    from mixbit.datasets.load import Reading

    parts = [] if image_size is None else image_size.lower().split("x")
    if image_size is not None and not (len(parts) == 2 and all(part.isdecimal() for part in parts)):
        raise InvalidInput(f"--image-size {image_size}: is not understood; write HxW, as 224x224")
    reading = Reading(
        batch_size=batch_size,
        image_size=(int(parts[0]), int(parts[1])) if parts else None,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        skip_broken=skip_broken,
        length=length,
        seed=seed,
    )
    reading.check()
    return reading


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        numbers = None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if numbers is not None and not (numbers and all(map(math.isfinite, numbers))):
        raise InvalidInput(f"{option} {text}: is not understood; write numbers, as 0.485,0.456,0.406")
    return numbers


def data_of(
    specs: Mapping[str, str | None], network: "LoadedModel", reading: "Reading", task: "Task"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name, `data`, `eval` or `train` -> its batches, None where there is no spec; and what Settings note of them.

    The first tells names of classes, unless MODEL does.
    """
    from mixbit.datasets.load import load_data

    read: dict[str, Any] = {}
    preprocessing = None
    reading = replace(reading, task=task.name)
    for name, spec in specs.items():
        how = replace(reading, every_epoch=name == "train")
        loaded = None if spec is None else load_data(spec, network, how)
        read[name] = None if loaded is None else loaded.batches
        if loaded is not None:
            if loaded.num_samples is not None:
                say(f"--{name} {spec}: {loaded.in_words(prepared=loaded.preprocessing != preprocessing)}")
            preprocessing = preprocessing or loaded.preprocessing
            reading = replace(reading, classes=reading.classes or loaded.classes)
    return read, {"preprocessing": preprocessing, "classes": reading.classes or network.classes or ()}


def check_run(folder: Path) -> None:
    """Raise InvalidInput unless the folder is there, before torch is loaded."""
    if not folder.is_dir():
        raise InvalidInput(f"{folder}: no such folder; give the --out of mixbit quantize")


def pins_of(texts: list[str] | None) -> dict[str, str]:
    """Pattern -> scheme of `NAME=SCHEME` texts."""
    pins: dict[str, str] = {}
    for text in texts or []:
        pattern, _, scheme = text.rpartition("=")
        if not pattern or pattern in pins:
            raise InvalidInput(f"pin {text!r} is not understood; write NAME=SCHEME, as conv1.weight=w8a8, each once")
        pins[pattern] = str(Scheme.parse(scheme))
    return pins


def dynamic_of(texts: list[str] | None) -> dict[str | int, tuple[int, ...]]:
    """Name or position of an input -> its dimensions of any size, from `INPUT:DIMENSION,...` texts."""
    dynamic: dict[str | int, tuple[int, ...]] = {}
    for text in texts or []:
        name, _, axes = text.rpartition(":")
        parts = [axis.strip() for axis in axes.split(",")]
        if not name or not all(part.isdecimal() for part in parts):
            raise InvalidInput(f"dynamic {text!r} is not understood; write INPUT:DIMENSION, as input_ids:1 or 0:2,3")
        key = int(name) if name.isdecimal() else name
        dynamic[key] = (*dynamic.get(key, ()), *map(int, parts))
    return dynamic


def function_or_name(name: str, what: str) -> Any:
    """A function where the name is one of a file or package, as `file.py:function`; else the name."""
    from mixbit.core import load_function

    place, _, function = name.rpartition(":")
    is_function = place.endswith(".py") or ("=" not in function and "." in place)
    return load_function(name, what) if is_function else name


def task_of(
    text: str | None, loss: str | None, output_weights: list[str] | None, model: "LoadedModel | None" = None
) -> "Task":
    """The task of that text, under the loss that the spec names: a function (output, labels) -> mean of the batch.

    Where there is no text, it is the task that the model tells, or classification.
    """
    from mixbit.core import Task, load_function

    weights: dict[str, float] = {}
    for each in output_weights or []:
        name, _, number = each.rpartition("=")
        try:
            weight = float(number) if name and name not in weights else None
        except ValueError:
            weight = None
        if weight is None:
            raise InvalidInput(f"output weight {each!r} is not understood; write NAME=NUMBER, as boxes=2, each once")
        weights[name] = weight
    told = None if model is None else model.task
    task = Task.named(text or told or "classification").weighted(weights)
    return task if loss is None else task.with_loss(load_function(loss, "LOSS"))


def say_unless_used(loss: str | None, metric: str) -> None:
    """Say so where a loss is given to a metric that does not use it."""
    from mixbit.metrics import IGNORES_LOSS, METRICS

    function = METRICS.get(metric.partition(":")[0])
    if loss is not None and function is not None and IGNORES_LOSS in facts_of(function):
        say(f"--loss {loss}: the metric {metric} looks at no loss; take another, as fisher")


def check_importance(importance: str, choices: Iterable[str] | None, pins: Mapping[str, str]) -> None:
    """Raise InvalidInput for an importance without a sparse scheme that it would be for."""
    if importance != "magnitude" and not any("@" in text for text in (*(choices or ()), *pins.values())):
        raise InvalidInput(f"--importance {importance}: no scheme that is offered is sparse, as w8a8@2:4; leave it out")


def split(choices: str | None) -> list[str] | None:
    """The texts between commas."""
    return None if choices is None else [text.strip() for text in choices.split(",")]


def refuse(given: dict[str, Any], why: str) -> None:
    """Raise InvalidInput for the first option that is given: that is not what it is by default."""
    for name, value in given.items():
        if value is True or value not in (None, False, 1.0, "ilp", "fisher"):
            raise InvalidInput(f"--{name.replace('_', '-')} {value}: {why}; leave it out")


def room_of(memory: str | None, scratch: Path | None, device: str) -> "Room | None":
    """What a run may take whose weights stay in files; None where they are loaded. InvalidInput for a mistake."""
    from mixbit.core import Room, num_bytes

    if memory is None:
        if scratch is not None:
            raise InvalidInput(f"--scratch {scratch}: is for --memory; give both, or none")
        return None
    if device != "cpu":
        raise InvalidInput(f"--device {device}: with --memory weights are read for the CPU; leave it out")
    if scratch is not None and not scratch.is_dir():
        raise InvalidInput(f"--scratch {scratch}: no such folder; make it")
    return Room(num_bytes(memory, "--memory"), None if scratch is None else scratch.absolute())


def model_on(spec: str, device: str, *, on_meta: bool = False) -> "LoadedModel":
    """The user's model on that device, or on meta, with its weights left in files."""
    from mixbit.graph.capture import check_module
    from mixbit.models.load import load_model

    place, model = device_of(device), load_model(spec, on_meta=on_meta)
    if on_meta:
        return model
    check_module(model.module)
    if model.module.training:
        say(f"MODEL {spec}: in training mode; it is run in eval mode: no dropout, batch norms as trained")
    return replace(model, module=model.module.to(place))


def sharing_of(name: str, processes: int | None, address: str | None, room: "Room | None" = None) -> Engine | None:
    """Where work is shared out; None where nothing says that it is."""
    if processes is None and name == "local" and address is None:
        return None
    if room is not None:
        raise InvalidInput("--memory: one process reads the weights; leave --processes and --engine out")
    return engine_of(name, processes or cpu_count() or 1, address)


def engine_of(name: str, processes: int, address: str | None) -> Engine:
    """Where work is shared out; what keeps it from working is said here, before minutes of work."""
    from mixbit.core import check_engine  # needs torch

    pick("engine", name, ("local", "ray"))
    engine = Engine(name, processes, address)  # type: ignore[arg-type] it is one of the two
    check_engine(engine)
    return engine


def device_of(name: str) -> Any:
    """The torch device of that name; InvalidInput where it cannot compute."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        count = torch.cuda.device_count()
        way_out = f"cpu, or cuda:0 to cuda:{count - 1}" if count else "cpu, since torch finds no GPU of the kind cuda"
        raise InvalidInput(f"device {name!r}: {str(error).splitlines()[0]}; give {way_out}") from error
    return device


def print_rows(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table."""
    table = Table(title=_shown(title))
    for column in columns:
        table.add_column(_shown(column))
    for row in rows:
        table.add_row(*map(_shown, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # wide for a file or another program


def _shown(text: str) -> Text:
    """The text as it is: what looks like Rich's markup in a name is none."""
    return Text(clean(text))


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2))


def say_what_runs_in_float(names: list[str], count: int) -> None:
    """Name the layers, of so many, that a runtime did not run in integers."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    if names:
        say(f"{len(names)} of {count} layers did not run in int8: {', '.join(names[:5])}{more}")
