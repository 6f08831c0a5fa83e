"""The cells of a sweep in one process: what cells of one model share is worked out once."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mixbit.core import (
    Budget,
    InvalidInput,
    MaxDrop,
    MixbitError,
    Sensitivity,
    Store,
    digest,
    reserved,
    scratch_folder,
    users_code,
)
from mixbit.metrics import METRICS
from mixbit.pipeline.auto import (
    calibrated,
    captured,
    check_reachable,
    deployed_within,
    measured,
    offered,
    tried,
    weigh,
)
from mixbit.pipeline.deploy import Calibrated
from mixbit.pipeline.network import Network
from mixbit.pipeline.settings import Run, Settings
from mixbit.quantization.ranges import RANGES
from mixbit.results.digests import check_digests
from mixbit.results.result import RESULT_FILE, Result
from mixbit.results.sweep import SweepCell
from mixbit.roundings import ROUNDINGS
from mixbit.searches.search import SEARCHES

_log = logging.getLogger("mixbit")
#: Folder, in that of the sweep, of tables and of the questions that finished cells answer.
WORK = ".work"
#: Under which name a table is stored there; those of cells have an equals sign in them.
TABLE = "table"


@dataclass(frozen=True)
class Given:
    """One model of a sweep with its data.

    Attributes:
        module: The trained network; it is left as it is.
        batches: Calibration data.
        eval_batches: Data to report on; the held-out calibration data where None.
        settings: Rounding, as the sweep names it -> the settings of its cells.
    """

    module: nn.Module
    batches: Iterable[Any]
    eval_batches: Iterable[Any] | None
    settings: Mapping[str, Settings]


class Answer(NamedTuple):
    """A cell as it ended, and whether it was finished by an earlier call."""

    cell: SweepCell
    taken_up: bool


def budget_of(text: str) -> Budget:
    """The budget of `mean_bits=4`, of limits between commas, or of `max_drop=1%`; raises InvalidInput for others."""
    name, _, value = text.partition("=")
    if name.strip() == "max_drop":
        return Budget(max_drop=MaxDrop.parse(value.strip()))
    return Budget.parse([part.strip() for part in text.split(",")])


def work_of(out: Path, cell: SweepCell) -> Path:
    """The store of its table, and of the questions that cells of that table answer, by the names of their folders."""
    return out / WORK / Path(cell.folder).parent


def is_known(out: Path, cell: SweepCell) -> bool:
    """Whether the sweep has begun that cell: then the files in its folder are the sweep's."""
    return (out / WORK / f"{cell.folder}.safetensors").exists()


class Stages:
    """The stages that cells of one model share, each worked out when it is first asked for; what failed fails again."""

    def __init__(self, setup: Callable[[], Given]) -> None:
        self._setup = setup
        self._answers: dict[str, Any] = {}

    def _once(self, step: str, work: Callable[[], Any]) -> Any:
        if step not in self._answers:
            try:
                with users_code(f"{step} fails"):
                    self._answers[step] = work()
            except MixbitError as error:
                self._answers[step] = error
        answer = self._answers[step]
        if isinstance(answer, MixbitError):
            raise answer
        return answer

    @property
    def given(self) -> Given:
        """The model and its data."""
        return self._once("setup", self._setup)

    def network(self, run: Run) -> Network:
        """Captured, with its data."""
        given = self.given
        return self._once("capture", lambda: captured(run, given.module, given.batches, given.eval_batches))

    def calibrated(self, run: Run) -> Calibrated:
        """The network and what the data says of it: one pass for all targets.

        Scales of weights are kept for each target: they depend on the biases that it adds.
        """
        network = self.network(run)
        known = self._once("calibrate", lambda: calibrated(run, network, offered(run), target=None))
        own = self._once(
            f"calibrate for {run.target.name}",
            lambda: replace(known, calibration=replace(known.calibration, weight_factors={})),
        )
        weigh(run, own, offered(run))
        return own

    def table(self, run: Run, work: Path) -> Sensitivity:
        """The target's table, from the store of that folder where it is there."""

        def table() -> Sensitivity:
            question, known, store = self.question(run), self.calibrated(run), Store(work)
            with reserved(work / TABLE, wait=True):  # another process may be measuring it
                if (stored := store.get(TABLE, question)) is not None:
                    return Sensitivity.of_text(stored.tensors["json"].numpy().tobytes(), work / TABLE)
                table = measured(run, known)
                text = torch.frombuffer(bytearray(table.to_json().encode()), dtype=torch.uint8)
                store.put(TABLE, question, {"json": text})
            return table

        return self._once(f"measure for {run.target.name}", table)

    def question(self, run: Run) -> dict[str, Any]:
        """What the target's table answers."""
        network, settings = self.network(run), run.settings
        return {
            **self._once("read", lambda: _digests(network)),
            "target": run.target.name,
            "task": digest(network.task.unfitted),
            "metric": digest(METRICS.find(settings.metric)[1]),
            "ranges": digest(RANGES.find(settings.ranges)[1]),
            "importance": settings.importance,
            "choices": offered(run),
            "pins": dict(settings.pins),
            "seed": settings.seed,
        }

    def question_of_cell(self, run: Run) -> dict[str, Any]:
        """What the results of a cell answer."""
        network, settings = self.network(run), run.settings
        return self.question(run) | {
            "budget": str(run.goal),
            "evaluation": self._once("read evaluation data", lambda: digest(network.evaluation)),
            "search": digest(SEARCHES.find(settings.search)[1]),
            "rounding": digest(ROUNDINGS.find(settings.rounding)[1]),
            "score": None if settings.score is None else digest(settings.score),
            "settings": settings.noted(),
        }


def _digests(network: Network) -> dict[str, str]:
    return {"network": digest(network.graph.module), "calibration": digest(network.pairs)}


class Cells:
    """Runs cells, whose models the setups return, into folders of `out`; keeps what those of one model share."""

    def __init__(self, setups: Mapping[str, Callable[[], Given]], out: Path, *, force: bool) -> None:
        self.setups, self.out, self.force = setups, out, force
        self._model, self._stages = "", None

    def __call__(self, cell: SweepCell) -> Answer:
        """Run the cell, or take it up where it is finished; one that fails says why."""
        _log.info("%s:", cell.name)
        try:
            with users_code("the cell fails"):
                return self._run(cell)
        except MixbitError as error:
            return Answer(cell.failed(error), taken_up=False)

    def stages_of(self, model: str) -> Stages:
        """Those of the model; those of another are let go."""
        if self._stages is None or self._model != model:
            self._model, self._stages = model, Stages(self.setups[model])
        return self._stages

    def _run(self, cell: SweepCell) -> Answer:
        stages, work, place = self.stages_of(cell.model), work_of(self.out, cell), self.out / cell.folder
        settings, store = stages.given.settings[cell.rounding], Store(work)
        budget = budget_of(cell.budget)
        # a cluster gives what takes long to two workers: the second waits, and takes it up
        with reserved(place, wait=True), scratch_folder() as scratch:
            force = self.force or is_known(self.out, cell)
            run = Run(cell.target, budget, place, settings, force=force)
            run.scratch = scratch
            network, question = stages.network(run), stages.question_of_cell(run)
            if (place / RESULT_FILE).exists():
                return Answer(cell.ended(_taken_up(place, store, question)), taken_up=True)
            tried(run, network)
            check_reachable(run, network.graph, budget)
            known, table = stages.calibrated(run), stages.table(run, work)
            store.put(place.name, question, {})
            return Answer(cell.ended(deployed_within(run, known, table, budget).result), taken_up=False)


def _taken_up(place: Path, store: Store, question: dict[str, Any]) -> Result:
    """The result of an earlier call; raises MixbitError where it answers another question, or has changed."""
    if store.get(place.name, question) is None:
        raise InvalidInput(
            f"{place}: holds results of another network, data or settings; choose another folder, or pass --force to "
            "start over"
        )
    result = Result.load(place)
    check_digests(place, result, result.files)
    return result
