"""Settings of auto_quantize(), and what all its steps share."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mixbit.core import (
    OF_FILES,
    Budget,
    InvalidInput,
    MaxDrop,
    Plan,
    Scheme,
    Score,
    Store,
    Task,
    beside,
    check_writable_folder,
    checked_class,
    facts_of,
    find_target,
    hidden,
    one_thread,
    phase,
    pick,
    untold,
)
from mixbit.graph.capture import Dynamic
from mixbit.metrics import MEAN_OVER_SAMPLES, METRICS, Metric
from mixbit.pruning.prune import check_share
from mixbit.quantization.biases import BIAS_CORRECTIONS
from mixbit.quantization.masks import IMPORTANCE, IMPORTANCES
from mixbit.quantization.offers import FLAVOURS, choices_of
from mixbit.quantization.ranges import RANGES, RangeMethod
from mixbit.quantization.shared import Shared, check_travels
from mixbit.roundings import ROUNDINGS, Rounding, check_shared_out, is_shared_out
from mixbit.searches.search import SEARCHES, Method
from mixbit.targets.size import figures_of
from mixbit.training.loop import Training

#: The methods that a run chooses among.
METHODS = {"metrics": METRICS, "searches": SEARCHES, "ranges": RANGES, "roundings": ROUNDINGS}
#: What the names of unfinished work end in: scores of tried plans, learned roundings, a network without some channels,
#: and trainings, in float after channels were removed, and of the plan.
TRIALS, ROUNDING, CHANNELS = "trials.jsonl", "rounding", "channels"
PRUNED, TRAINING = "pruned.safetensors", "training.safetensors"
#: Settings that have places of their own in result.json.
NOTED_APART = ("model", "command", "preprocessing", "classes")
#: The longest time that an evaluation may be given: a week.
LONGEST_S = 7 * 24 * 3600


@checked_class
@dataclass(frozen=True)
class Settings:
    """How a plan is made. Methods are names, or functions of the same kind.

    Attributes:
        task: What the model's outputs mean, or the name of that, as `Task.named` reads it.
        choices: Schemes to choose from; the target's default ones of the flavour where None.
        metric: Predicts the cost of each choice.
        search: Finds the plan.
        rounding: Makes integers of the weights.
        importance: Which weights sparse choices set to zero: a name in `mixbit.quantization.masks.IMPORTANCES`.
        pins: Pattern of layers' names -> the scheme that they take, see `Sensitivity.pinned`.
        score: The user's own, for searches that try plans and a largest drop; where None accuracy, or the divergence.
        eval_subset_ratio: Share of the calibration batches that searches try plans on, apart from those held out.
        eval_timeout_s: Longest time of one evaluation; None for any.
        ranges: Chooses the ranges of activations.
        bias_correction: A name in `mixbit.quantization.biases.BIAS_CORRECTIONS`.
        reestimate_batch_norms: Whether batch norms take their statistics from the calibration data, see `reestimated`.
        equalize: Whether channels between layers are scaled before anything else, see `equalized`.
        prune_channels: Share of the output channels to remove before everything else, see `mixbit.prune_channels`;
            without fine-tuning it costs accuracy.
        flavour: One of FLAVOURS.
        epochs: Epochs of training, for the flavour `qat`.
        training: How to train there; its seed is the one below.
        train_batches: Data to train on there; the calibration data apart from what is held out where None.
        dynamic: Input -> further dimensions of any size, see `capture`; those in which batches differ are found.
        seed: Seed of all random numbers.
        fast: Whether layers read float numbers where quantized inputs make them no faster, as timed in the runtime.
        samples: How many of the first samples of the calibration data to take; all where None.
        model: Where the model came from, to be noted in result.json.
        command: The words of the command line, to be noted there too.
        preprocessing: What was done to the data before the network, in words, to be noted there too.
        classes: Names of the classes in the order of their numbers, where they have some, to be noted there too.
    """

    task: Task | str = field(default_factory=Task.classification)
    choices: Sequence[str] | None = None
    metric: str | Metric = "fisher"
    search: str | Method = "ilp"
    rounding: str | Rounding = "nearest"
    importance: str = IMPORTANCE
    pins: Mapping[str, str] = field(default_factory=dict)
    score: Score | None = None
    eval_subset_ratio: float = 1.0
    eval_timeout_s: float | None = None
    ranges: str | RangeMethod = "mse"
    bias_correction: str = "at_once"
    reestimate_batch_norms: bool = False
    equalize: bool = False
    prune_channels: float = 0.0
    flavour: str = "static"
    epochs: int = 3
    training: Training = field(default_factory=Training)
    train_batches: Iterable[Any] | None = None
    dynamic: Dynamic = field(default_factory=dict)
    seed: int = 0
    fast: bool = False
    samples: int | None = None
    model: str | None = None
    command: Sequence[str] = ()
    preprocessing: str | None = None
    classes: Sequence[str] = ()

    def noted(self) -> dict[str, Any]:
        """Name -> value of the settings that are not the default ones, and the seed, as result.json holds them.

        None stands for what JSON cannot express: functions, data, and a task with a loss or weights of its own.
        """
        default, given = Settings(), {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in NOTED_APART and (each.name == "seed" or value != getattr(default, each.name)):
                given[each.name] = _in_json(value)
        return given

    def check(self) -> None:
        """Raise InvalidInput for a name that is unknown, or a number out of range."""
        Task.of(self.task)
        METRICS.find(self.metric)
        SEARCHES.find(self.search)
        ROUNDINGS.find(self.rounding)
        RANGES.find(self.ranges)
        pick("bias correction", self.bias_correction, BIAS_CORRECTIONS)
        pick("importance", self.importance, IMPORTANCES)
        pick("flavour", self.flavour, FLAVOURS)
        if not 0 <= self.seed < 2**32:
            raise InvalidInput(f"seed={self.seed}: give a whole number from 0 to 2**32 - 1")
        if not 0 < self.eval_subset_ratio <= 1:
            raise InvalidInput(f"eval_subset_ratio={self.eval_subset_ratio}: give a share between 0 and 1")
        if self.eval_timeout_s is not None and not 0 < self.eval_timeout_s <= LONGEST_S:
            given = f"eval_timeout_s={self.eval_timeout_s}"
            raise InvalidInput(f"{given}: give a positive number of seconds, {LONGEST_S} at most")
        if self.prune_channels != 0:
            check_share(self.prune_channels)
        for scheme in self.pins.values():
            Scheme.parse(scheme)
        if self.epochs < 1:
            raise InvalidInput(f"epochs={self.epochs!r}: give a whole number from 1")
        self.training.check()


#: Settings that choose a plan.
FOR_CHOOSING = ("choices", "metric", "search", "pins", "eval_subset_ratio", "prune_channels", "fast")


def goal_of(budget: Budget | None, plan: Plan | None) -> Budget | Plan:
    """The one that is given; raises InvalidInput for both or none."""
    goals = [goal for goal in (budget, plan) if goal is not None]
    if len(goals) != 1:
        raise InvalidInput(f"{'both' if goals else 'neither'} of budget and plan: give one of the two")
    return goals[0]


class Run:
    """What all steps share: target, budget or plan, settings, places of unfinished work, and the seconds of each step.

    `shared` says where the table is measured and plans are tried; None for this process. `others` are the processes
    there, and `scratch` is a temporary folder for the network in float as the target's files, for the time of the run.

    Raises InvalidInput where one of them cannot be used, or the runtime is not installed.
    """

    scratch: Path
    others: Shared | None = None

    def __init__(
        self,
        target: str,
        goal: Budget | Plan,
        out: Path,
        settings: Settings,
        *,
        force: bool,
        shared: Shared | None = None,
    ) -> None:
        self.target = find_target(target)
        if isinstance(goal, Plan):
            check_given(goal, self.target.name, settings)
        self.target.require()
        settings.check()
        self.choices = choices_of(settings.flavour, self.target, settings.choices)
        if settings.fast:
            self.choices = self._with_float_inputs()
        check_writable_folder(out, force=force)
        self.goal, self.out, self.settings, self.force, self.shared = goal, out, settings, force, shared
        self.task, self.training = Task.of(settings.task), replace(settings.training, seed=settings.seed)
        self.seconds: dict[str, float] = {}
        self._places: set[Path] = set()
        share = settings.prune_channels
        if share != 0 and self.target.needs_graph:
            raise InvalidInput(
                f"prune_channels={share}: a file for {self.target.name} runs on the model's own graph, "
                "which has all channels; take another target"
            )
        limits = self.goal.limits if isinstance(self.goal, Budget) else {}
        for name in OF_FILES:
            if name in limits and name not in figures_of(self.target):
                raise InvalidInput(untold(name, self.target.name))
        if self.drop is not None and settings.flavour == "qat":
            raise InvalidInput(
                "flavour qat: to keep within a largest drop, every plan tried would have to be trained; give a budget "
                "instead, say the weight_bytes of the plan that --max-drop finds, or a --rounding instead of training"
            )
        if self.drop is not None and share != 0:
            raise InvalidInput(f"prune_channels={share}: a drop would count from the pruned network; give a budget")
        if shared is not None:
            check_shared(shared, goal, settings)

    @property
    def drop(self) -> MaxDrop | None:
        """The largest drop, where that is the budget."""
        return self.goal.max_drop if isinstance(self.goal, Budget) else None

    def threads(self) -> AbstractContextManager[None]:
        """In the block, the threads of what must be the same bits in all processes: one where work is shared out."""
        return nullcontext() if self.shared is None else one_thread()

    def _with_float_inputs(self) -> tuple[str, ...]:
        """The choices, each also with its weight beside an input in float, and float."""
        if not self.target.integer_layers:
            raise InvalidInput(f"fast: target {self.target.name} computes in float whatever the plan; leave it out")
        beside = [str(Scheme(Scheme.parse(choice).weight)) for choice in self.choices]
        return tuple(dict.fromkeys((*self.choices, *beside, "float")))

    @contextmanager
    def clock(self, step: str) -> Iterator[Callable[[str], None]]:
        """Count the seconds of a step, and say what comes out of it: a `phase`."""
        began = time.perf_counter()
        with phase(step) as tell:
            yield tell
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began

    def place(self, ending: str) -> Path:
        """Where unfinished work is stored beside the results, for an interrupted run; `clear` removes it."""
        path = self._beside(ending)
        self._places.add(path)
        return path

    def _beside(self, ending: str) -> Path:
        return beside(self.out.absolute(), f"{{}}.{ending}")

    def clear(self) -> None:
        """Remove the unfinished work of this run, and files that killed runs did not finish; that of others stays."""
        for ending in (TRIALS, PRUNED, TRAINING):
            hidden(self._beside(ending), "new").unlink(missing_ok=True)
        for path in self._places:
            if path.is_dir():
                Store(path).clear()
            else:
                path.unlink(missing_ok=True)


def check_given(plan: Plan, target: str, settings: Settings) -> None:
    """Raise InvalidInput where the plan is for another target, or settings would choose one."""
    if plan.target != target:
        raise InvalidInput(
            f"target {target}: the plan is for {plan.target}; give that target, or write {target} as target of the plan"
        )
    default = Settings()
    for name in FOR_CHOOSING:
        if (value := getattr(settings, name)) != getattr(default, name):
            raise InvalidInput(f"{name}={value}: the plan is given, and nothing is chosen; leave it out")
    if settings.flavour == "dynamic":
        raise InvalidInput("flavour dynamic: the plan says which ranges are taken at run time; leave it out")


def check_shared(shared: Shared, goal: Budget | Plan, settings: Settings) -> None:
    """Raise InvalidInput where nothing of what is asked for can be shared out, or something cannot travel."""
    way_out = "leave shared out (--processes, --engine)"
    if isinstance(goal, Plan):
        check_shared_out(settings.rounding)  # nothing is measured or tried
    if settings.prune_channels != 0:
        raise InvalidInput(f"prune_channels={settings.prune_channels}: other processes do not prune; {way_out}")
    for name in ("metric", "rounding", "score") if not shared.engine.is_this_process else ():
        check_travels(name, getattr(settings, name))
    if isinstance(goal, Plan) or is_shared_out(settings.rounding):
        return
    (metric, predictor), (search, method) = METRICS.find(settings.metric), SEARCHES.find(settings.search)
    in_rounds = not isinstance(settings.search, str) or getattr(method, "keywords", {}).get("parallel", 1) > 1
    if goal.max_drop is None and MEAN_OVER_SAMPLES not in facts_of(predictor) and not in_rounds:
        more = ", or --search autoq:parallel=4" if search.startswith("autoq") else ""
        raise InvalidInput(
            f"shared: metric {metric} is measured at once, and search {search} tries no plans at once, so that nothing "
            f"can be shared out; take a metric that is a mean over samples, as fisher{more}, or {way_out}"
        )


def _in_json(value: Any) -> Any:
    """The value as JSON has it; None where it has none, or no part of it."""
    if isinstance(value, Task):
        return str(value) if Task.named(str(value)) == value.unfitted else None
    if isinstance(value, Mapping):
        parts: Any = {str(key): _in_json(part) for key, part in value.items()}
        return None if None in parts.values() else parts
    if isinstance(value, list | tuple):
        parts = [_in_json(part) for part in value]
        return None if None in parts else parts
    return value if isinstance(value, bool | int | float | str) else None
