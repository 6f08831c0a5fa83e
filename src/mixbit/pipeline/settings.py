"""How auto_quantize() makes a plan: every choice of methods, in one value."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixbit.core import InvalidInput, Target, check_writable_folder, find_target, pick, target_module
from mixbit.core.task import Task
from mixbit.metrics import METRICS, Metric
from mixbit.pipeline.trials import Score
from mixbit.pruning.prune import check_share
from mixbit.quantization.biases import BIAS_CORRECTIONS
from mixbit.quantization.masks import IMPORTANCE, IMPORTANCES
from mixbit.quantization.offers import choices_of
from mixbit.quantization.ranges import RANGES, RangeMethod
from mixbit.roundings import ROUNDINGS, Rounding
from mixbit.searches.search import SEARCHES, Method
from mixbit.training.loop import Training

#: The longest time that an evaluation may be given: a week.
LONGEST_S = 7 * 24 * 3600


@dataclass(frozen=True)
class Settings:
    """How a plan is made.

    Attributes:
        task: What the model's outputs mean.
        choices: Schemes to choose from; the target's default ones of the flavour where None.
        metric: Name of the metric, or a function of the same kind.
        search: Name of the search, or a function of the same kind.
        rounding: Name of the rounding, or a function of the same kind.
        importance: What decides which weights sparse choices make zero: a name in
            `mixbit.quantization.masks.IMPORTANCES`.
        pins: Pattern of layers' names -> the scheme that they take, see `Sensitivity.pinned`.
        score: Evaluation function of the user's own, for searches that try plans and for a largest drop:
            `score(model, batches)`, the higher the better. Where None, accuracy, or without labels the divergence.
        eval_subset_ratio: Share of the calibration batches that searches try plans on, those held out apart.
        eval_timeout_s: Longest time of one evaluation; None for any.
        ranges: Name of the method that chooses ranges of activations, or a function of the same kind.
        bias_correction: A name in `mixbit.quantization.biases.BIAS_CORRECTIONS`.
        reestimate_batch_norms: Whether batch norms take their statistics from the calibration data, see `reestimated`.
        equalize: Whether channels between layers are scaled before anything else, see `equalized`.
        prune_channels: Share of the output channels to remove before everything else, see `mixbit.prune_channels`;
            without fine-tuning it costs accuracy.
        flavour: One of FLAVOURS.
        epochs: Of the training, for the flavour `qat`.
        training: How to train there; its seed is the one below.
        train_batches: Data to train on there; the calibration data apart from what is held out where None.
        seed: Of every draw.
        model: Where the model came from, to be noted in result.json.
    """

    task: Task = field(default_factory=Task.classification)
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
    seed: int = 0
    model: str | None = None

    def check(self) -> None:
        """Raise InvalidInput for a name that is unknown, or a number out of range."""
        METRICS.find(self.metric)
        SEARCHES.find(self.search)
        ROUNDINGS.find(self.rounding)
        RANGES.find(self.ranges)
        pick("bias correction", self.bias_correction, BIAS_CORRECTIONS)
        pick("importance", self.importance, IMPORTANCES)
        if not 0 < self.eval_subset_ratio <= 1:
            raise InvalidInput(f"eval_subset_ratio={self.eval_subset_ratio}: give a share between 0 and 1")
        if self.eval_timeout_s is not None and not 0 < self.eval_timeout_s <= LONGEST_S:
            raise InvalidInput(
                f"eval_timeout_s={self.eval_timeout_s}: give a positive number of seconds, {LONGEST_S} at most"
            )
        if self.prune_channels != 0:
            check_share(self.prune_channels)
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise InvalidInput(f"epochs={self.epochs!r}: give a whole number from 1")
        self.training.check()


class Run:
    """What the steps share: the target, the settings, the places of files, and the clock.

    Raises:
        InvalidInput: names, settings or the folder cannot be used, or the runtime is not installed.
    """

    def __init__(self, target: str, out: Path, settings: Settings, *, force: bool) -> None:
        self.target: Target = find_target(target)
        self.module = target_module(target)
        self.module.require()
        settings.check()
        self.choices = choices_of(settings.flavour, self.target, settings.choices)
        check_writable_folder(out, force=force)
        if settings.prune_channels != 0 and self.module.NEEDS_GRAPH:
            raise InvalidInput(
                f"prune_channels={settings.prune_channels}: a file for {target} runs on the model's own graph, "
                "which has all channels; take another target"
            )
        self.out, self.settings, self.force = out, settings, force
        self.kept: set[Path] = set()
        self.task = settings.task
        self.seconds: dict[str, float] = {}

    @contextmanager
    def clock(self, step: str) -> Iterator[None]:
        """Count the seconds of a step."""
        began = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began

    def keep(self, ending: str) -> Path:
        """The place beside the results of what an interrupted run goes on with; `clear` removes it."""
        path = self.out.absolute().with_name(f"{self.out.absolute().name}.{ending}")
        self.kept.add(path)
        return path

    def clear(self) -> None:
        """Remove what this run kept for itself; what another left there stays."""
        for path in self.kept:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
