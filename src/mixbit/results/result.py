"""result.json: every figure of a run."""

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from mixbit.core import (
    InvalidInput,
    Ports,
    Scheme,
    StoredWeight,
    Versions,
    find_target,
    pick,
    read_model,
    sha256,
)
from mixbit.pruning.prune import Removal
from mixbit.targets.latency import Ratio

#: The file of every figure.
RESULT_FILE = "result.json"
#: How a table of rows was executed that the runtime computed when it loaded the file.
FOLDED = "folded when loaded"
#: A product or convolution, by the names of runtimes, in another type.
_FLOAT_OPERATOR = re.compile(r"\w*(?:Conv|conv|Gemm|MatMul|FullyConnected)\w* (?!int8)")
#: Figures of a network, and the least and largest that each can be; rounding may take a divergence below 0.
FIGURES = (
    dict.fromkeys(("accuracy", "agreement"), (0.0, 1.0))
    | dict.fromkeys(("score", "divergence"), (-math.inf, math.inf))
    | dict.fromkeys(("num_samples", "weight_bytes", "predicted_bytes", "file_bytes", "latency_ms"), (0.0, math.inf))
    | dict.fromkeys(("max_abs_diff", "relative_rms", "at_default_settings", "amplification"), (0.0, math.inf))
)


class LayerRow(BaseModel):
    """One layer: its scheme, its bytes as predicted and in the file, how it is stored and how it was executed."""

    model_config = ConfigDict(extra="forbid")

    scheme: str
    predicted_bytes: Annotated[int, Field(ge=0)]
    weight_bytes: Annotated[int, Field(ge=0)]
    stored: str
    executed: str


@dataclass(frozen=True)
class Pruned(Removal):
    """What was removed before quantization, and what that alone did on the evaluation data.

    Attributes:
        dense: `accuracy` of the network with all channels.
        pruned: `accuracy` of the network without them, in float, and `divergence` from the other (nats).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    dense: dict[str, float]
    pruned: dict[str, float]

    def __str__(self) -> str:
        cost = f"{self.pruned['divergence']:.3g} nats from the network with all channels"
        if "accuracy" in self.dense and "accuracy" in self.pruned:
            accuracies = f"{self.dense['accuracy']:.2%} -> {self.pruned['accuracy']:.2%}"
            cost = f"accuracy in float {accuracies}, {cost}"
        return f"channels removed: {super().__str__()}; {cost}"


def _beside(name: str) -> str:
    if name in ("", ".", "..") or re.search(r"[/\\\\:\x00-\x1f]", name):
        raise ValueError("not the name of a file beside result.json")
    return name


def _possible(figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        if name not in FIGURES:
            raise ValueError(f"{name} is unknown; known: {', '.join(FIGURES)}")
        low, high = FIGURES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} is {value:g}, and must be between {low:g} and {high:g}")
    return figures


def _two_networks(parts: dict[str, float]) -> dict[str, float]:
    for name in parts:
        pick("network", name, ("simulated", "deployed"))
    return parts


Figures = Annotated[dict[str, float], AfterValidator(_possible)]
Parts = Annotated[dict[str, float], AfterValidator(_two_networks)]
Amounts = dict[str, Annotated[float, Field(ge=0)]]


class Guess(NamedTuple):
    """A class, and its probability."""

    number: Annotated[int, Field(ge=0)]
    probability: Annotated[float, Field(ge=0, le=1)]


class Change(BaseModel):
    """What one output says of a sample, in float and deployed.

    Attributes:
        float_, deployed: The top classes, where the output is one choice among classes.
        differing: Share of answers that differ, where a sample has many.
        distance: Root mean square difference by the root mean square in float, where numbers are no answers.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)

    float_: Annotated[list[Guess], Field(alias="float")] = []
    deployed: list[Guess] = []
    differing: Annotated[float | None, Field(ge=0, le=1)] = None
    distance: Annotated[float | None, Field(ge=0)] = None

    @property
    def flips(self) -> bool:
        """Whether the top class is another one."""
        return bool(self.float_ and self.deployed) and self.float_[0].number != self.deployed[0].number


class ChangedSample(BaseModel):
    """A sample that the artefact answers unlike the float network.

    Attributes:
        sample: Its number in the check set.
        label: Its class, where it is of one.
        divergence: Of the artefact's outputs from the float network's, in nats.
        outputs: Name of each output -> what it says.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    sample: Annotated[int, Field(ge=0)]
    label: int | None
    divergence: Annotated[float, Field(ge=0)]
    outputs: dict[str, Change]


def _with_ports(content: dict[str, Any]) -> dict[str, Any]:
    return {"ports": None} | content


#: Files of version 1 did not say what the artefact takes and returns, nor how they were made.
VERSIONS = Versions(2, {1: _with_ports})


class Result(BaseModel):
    """The file result.json. Parts are plain dictionaries, without the figures that do not apply.

    Attributes:
        model: MODEL of the command line, its file as an absolute path; None where a module was handed over.
        chosen: Why this plan was deployed, in a sentence.
        float_: `accuracy`, `score` by the user's own function, `weight_bytes`, `file_bytes`, `latency_ms` of the float
            network in the same runtime.
        simulated: `accuracy`, `score`, `divergence` (nats) of the simulation.
        untrained: The same before fine-tuning; empty where there was none.
        deployed: `num_samples`, those of the evaluation data, `accuracy`, `score`, `agreement`, `max_abs_diff`,
            `relative_rms`, `at_default_settings`, `amplification`, `weight_bytes`, `predicted_bytes`, `file_bytes`,
            `latency_ms` of the artefact, see `Comparison`, and its `divergence` from the float network.
        problems: What differed from what was promised, one sentence each; None in files of before this was noted.
        latency_ratio: The artefact's latency by the float network's, timed in turn; None where it was not.
        outputs: Name of each output -> `relative_rms` of the artefact's from the simulation's.
        divergences: Name of each output -> its part of the divergence from the float network (nats), `simulated` and
            `deployed`.
        changed: The samples of the check set that changed most.
        uniform: The uniform plans within the budget: `scheme`, as `w4a8` or `w8a8d (w8 elsewhere)`, `accuracy`,
            `divergence`, `held_out_divergence`, `predicted_bytes`.
        pruned: What was removed before quantization; None where nothing was. `float` is the network without it.
        uncovered: What no layer covers, with their shares of work and storage.
        files: Name of each file beside this one -> its SHA-256.
        environment: Versions, machine and settings.
        ports: Names, types and shapes of what the artefact takes and returns; None where version 1 did not note them.
        preprocessing: What was done to the data before the network, in words; None where that is the user's.
        classes: Names of the classes in the order of their numbers; none where they are not known.
        command: The words of the command line that made this; none where Python code did.
        settings: Name -> value of the settings that are not the default ones, and the seed; None for what JSON cannot
            express, as a function.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)

    version: Literal[2] = 2
    target: str
    task: str
    model: str | None
    chosen: str
    float_: Annotated[Figures, Field(alias="float")]
    simulated: Figures
    untrained: Figures = {}
    deployed: Figures
    problems: list[str] | None = None
    latency_ratio: Ratio | None = None
    outputs: Amounts = {}
    divergences: dict[str, Parts] = {}
    changed: list[ChangedSample] = []
    uniform: list[dict[str, float | str]]
    layers: dict[str, LayerRow]
    pruned: Pruned | None = None
    uncovered: list[dict[str, int | float | str | None]]
    files: dict[Annotated[str, AfterValidator(_beside)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    seconds: Amounts
    environment: dict[str, str]
    ports: Ports | None
    preprocessing: str | None = None
    classes: list[str] = []
    command: list[str] = []
    settings: dict[str, JsonValue] = {}

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read result.json of a folder; raise InvalidInput for anything else."""
        return read_model(inside_of(folder, RESULT_FILE), cls, "a result", versions=VERSIONS)

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @property
    def speed(self) -> str:
        """Whether the artefact is slower or faster than the float network in the same runtime, in words."""
        ratio = self.latency_ratio
        if ratio is None:
            return "not timed beside float"
        return f"{ratio.in_words} float: {ratio} times its latency in {self.target}"

    @property
    def float_bytes(self) -> float:
        """Bytes of weights that no layer covers: they stay in float, and limits of bytes count them."""
        numbers = [row.get("num_weights") for row in self.uncovered]
        return 4.0 * sum(number for number in numbers if isinstance(number, int | float))

    @property
    def weight_share(self) -> float | None:
        """Bytes of all weights and scales by those in float, as the budget `weight_ratio` counts; None if not noted."""
        if not (before := self.float_.get("weight_bytes")):
            return None
        return (self.deployed["weight_bytes"] + self.float_bytes) / (before + self.float_bytes)

    @property
    def schemes(self) -> dict[str, str]:
        """Layer -> its scheme."""
        return {name: row.scheme for name, row in self.layers.items()}

    @property
    def predicted_bytes(self) -> dict[str, int]:
        """Layer -> bytes of its weight and scales, as predicted."""
        return {name: row.predicted_bytes for name, row in self.layers.items()}


def figures(**values: float | None) -> dict[str, float]:
    """The figures that apply: those that are finite numbers."""
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def layer_rows(
    schemes: dict[str, str],
    predicted: dict[str, int],
    target: str,
    folder: Path,
    executed: dict[str, str],
    *,
    tables: Collection[str],
) -> dict[str, LayerRow]:
    """The part `layers`, with what the target's file in the folder holds.

    Runtimes fold `tables`, layers that only look rows up, where the numbers of the rows are constants.
    """
    weights, missing = find_target(target).stored(folder), StoredWeight(0, "not found")
    return {
        name: LayerRow(
            scheme=scheme,
            predicted_bytes=predicted[name],
            weight_bytes=weights.get(name, missing).weight_bytes,
            stored=weights.get(name, missing).types,
            executed=executed.get(name, FOLDED if name in tables else "not reported"),
        )
        for name, scheme in schemes.items()
    }


def in_float(layers: dict[str, LayerRow]) -> list[str]:
    """Layers with a quantized input of which the runtime executed an operator in float; look-ups compute nothing."""
    return [
        name
        for name, row in layers.items()
        if Scheme.parse(row.scheme).input is not None
        and (
            _FLOAT_OPERATOR.search(row.executed) or not any(text in row.executed for text in ("int8", "Gather", FOLDED))
        )
    ]


def files_of_a_result(folder: Path) -> list[str]:
    """Names of the files there that are to the bit those of the result in the folder; none where it holds no result."""
    try:
        named = Result.load(folder).files
    except InvalidInput:
        return []
    return [name for name, digest in named.items() if (folder / name).is_file() and sha256(folder / name) == digest]


def inside_of(folder: Path, name: str) -> Path:
    """The path of a file; raises InvalidInput where it is a link that leads out of the folder."""
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InvalidInput(f"{path}: a link out of the folder; put the file itself there")
    return path
