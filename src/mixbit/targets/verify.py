"""verify(): does the artefact do, weigh and hold what was promised?"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mixbit.core import (
    Batch,
    Inputs,
    InvalidInput,
    Plan,
    Runner,
    Target,
    TargetMismatch,
    Task,
    checked,
    find_target,
    split_all,
    spread,
)
from mixbit.graph import Difference, Evaluation, Graph, Reference, Walker, evaluate, fitted
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.sizes import weight_bytes_of
from mixbit.targets._integers import plan_of
from mixbit.targets._layers import FirstDifference, Watched, first_difference, first_rows, watched
from mixbit.targets.size import file_bytes

#: Largest share of top answers that may differ from the simulation; one answer may always.
ANSWERS_TOLERANCE = 0.02
#: Channels whose spreads differ by no more than this factor are compared together.
LIKE = 4.0
#: Largest root mean square difference from the simulation, relative to the spread of its outputs.
OUTPUT_TOLERANCE = 0.03
#: What `amplification` changes inputs by: a unit in the last place of float32.
LAST_PLACE = 2.0**-23
#: A network whose outputs change by a third of a difference, when its inputs do in the last place, explains it.
EXPLAINS = 3.0
#: The same for a batch of a few samples, where one number that rounds to the other side of a tie counts for more.
FEW_TOLERANCE = 0.15


def artefact_runner(runner: Runner, graph: Graph) -> Callable[[Inputs], Any]:
    """An artefact of the graph as a function for `evaluate`: it returns what the graph would."""

    @torch.no_grad()
    def returned_for(inputs: Inputs) -> tuple[list[Any], pytree.TreeSpec]:
        on_device = inputs.to(graph.device)
        return pytree.tree_flatten(graph(*on_device.args, **on_device.kwargs))

    leaves, structure = returned_for(graph.example)
    num_tensors = sum(isinstance(leaf, Tensor) for leaf in leaves)

    def run(inputs: Inputs) -> Any:
        arrays = [leaf.numpy() for leaf in graph.tensors(inputs)]
        outputs = [torch.from_numpy(np.array(output)) for output in runner.run(arrays)]
        if any(not output.isfinite().all() for output in outputs):
            wanted = [leaf.cpu().isfinite() for leaf in returned_for(inputs)[0] if isinstance(leaf, Tensor)]
            if not all(map(torch.equal, wanted, (output.isfinite() for output in outputs))):
                raise TargetMismatch("the artefact returns NaN or inf where the network does not")
        if len(outputs) != num_tensors:
            raise TargetMismatch(f"the artefact returns {len(outputs)} tensors, the simulation {num_tensors}")
        left = iter(outputs)
        returned = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return pytree.tree_unflatten(returned, structure)

    return run


class Artefact(nn.Module):
    """An artefact, called like the model that it was made of: for evaluations of the user's own."""

    def __init__(self, run: Callable[[Inputs], Any]) -> None:
        super().__init__()
        self.run = run
        self.on_cpu = nn.Parameter(torch.empty(0), requires_grad=False)  # code asks parameters where the model is

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the runtime returns, in the model's structure."""
        return self.run(Inputs(args, kwargs))


@dataclass(frozen=True)
class Comparison:
    """The artefact against the simulation and the prediction.

    Attributes:
        num_samples: Samples compared.
        max_abs_diff: Largest difference of an output.
        relative_rms: Root mean square difference / spread of the simulation's outputs, of the channels where it is
            largest; see `groups_of`.
        agreement: Share of equal top answers, of the output where it is least; None where no output has any.
        accuracy: Of the artefact; None without labels.
        weight_bytes: Of weights and scales, read from the file.
        predicted_bytes: The same, as predicted from the plan.
        file_bytes: Of all the files that the runtime loads.
        outputs: Name of each output -> its own `relative_rms`.
        at_default_settings: `relative_rms` under the runtime's own settings, on the first batch; inf where the runtime
            fails under them, None where these are the settings compared.
        exact_settings: How a program loads the file so that it computes as compared, see `Target.exact`.
        amplification: See there; None where the outputs are near enough.
        first_difference: The first tensor inside that differs; None where none does, or none was looked at.
        problems: Each difference from what was promised; empty when the artefact matches.
    """

    num_samples: int
    max_abs_diff: float
    relative_rms: float
    agreement: float | None
    accuracy: float | None
    weight_bytes: int
    predicted_bytes: int
    file_bytes: int
    outputs: dict[str, float]
    problems: tuple[str, ...]
    at_default_settings: float | None = None
    exact_settings: str = ""
    amplification: float | None = None
    first_difference: FirstDifference | None = None

    def check(self) -> None:
        """Raise TargetMismatch where there are problems."""
        if self.problems:
            raise TargetMismatch("the artefact does not match: " + "; ".join(self.problems))

    def __str__(self) -> str:
        each = ", ".join(f"{name} {share:.2%}" for name, share in self.outputs.items()) if len(self.outputs) > 1 else ""
        agreement = "" if self.agreement is None else f", top answers agree on {self.agreement:.2%}"
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.2%}"
        verdict = "matches" if not self.problems else "DOES NOT MATCH: " + "; ".join(self.problems)
        if self.amplification is not None and not self.problems:
            verdict = (
                "matches as far as can be told: this network amplifies single roundings. The simulation differs from "
                f"itself by {self.amplification:.1%} where inputs change in the last place of float32"
            )
        default = "" if self.at_default_settings is None else f", {self.at_default_settings:.2%} at default settings"
        if self.at_default_settings == math.inf:
            default = ", does not run at the runtime's default settings"
        if (self.at_default_settings or 0) > OUTPUT_TOLERANCE:
            default += f" (load it with {self.exact_settings})"
        return (
            f"{self.num_samples} samples: outputs differ by {self.relative_rms:.2%} of their spread (at most "
            f"{self.max_abs_diff:.3g}{each and '; ' + each}){default}{agreement}{accuracy}; weights "
            f"{self.weight_bytes:,} bytes ({self.predicted_bytes:,} predicted), files {self.file_bytes:,} bytes; "
            f"{verdict}" + (f"\n{self.first_difference}" if self.first_difference is not None else "")
        )


@checked
def verify(
    path: str | Path,
    graph: Graph,
    simulated: Graph,
    batches: Iterable[Any],
    *,
    task: Task | str | None = None,
    layers: bool = False,
) -> Comparison:
    """Run the artefact in its runtime on real batches and compare it with the simulation.

    Args:
        path: Folder that `export` wrote, or the artefact in it.
        graph: The captured graph in float.
        simulated: The quantized graph that was exported.
        batches: Data, with labels where there are any.
        task: What the outputs mean, as a Task or its name; classification where None.
        layers: Whether to look for the first tensor inside that differs, on a few samples of the first batch.

    Raises:
        InvalidInput: the folder does not hold the artefact, or the data does not fit; or layers of a target whose
            runtime hands out no tensors inside.
        TargetMismatch: the runtime cannot load the artefact. Differences are in the result's `problems`.
    """
    plan = plan_of(simulated)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    task = Task.of(task)
    pairs = task.aligned(split_all(batches, len(graph.example.args)))
    task = fitted(task, graph, pairs)
    target = find_target(plan.target)
    reference = Reference.recorded(simulated, task)
    target.try_apart(folder, [leaf.numpy() for leaf in graph.tensors(graph.example)])
    runner = target.load(folder, graph)
    run = artefact_runner(runner, graph)
    deployed = evaluate(run, pairs, task, "run the artefact", differing_from=reference)
    comparison = compare(
        folder,
        target,
        predicted_bytes(simulated, plan),
        deployed,
        environment=runner.environment,
        default=at_default_settings(folder, target, runner, graph, pairs[0], reference),
        amplify=lambda: amplification(simulated, pairs, reference),
        more=problems_of_sizes(run, simulated_at_sizes(simulated, pairs[0][0], task), deployed),
    )
    if not layers:
        return comparison
    some = first_rows(pairs[0][0])
    arrays = [leaf.numpy() for leaf in graph.tensors(some)]
    return with_layers(comparison, target, folder, runner, watched(simulated, some), arrays)


def with_layers(
    comparison: Comparison,
    target: Target,
    folder: Path,
    runner: Runner,
    tensors: list[Watched],
    arrays: list[NDArray[Any]],
) -> Comparison:
    """The comparison with its `first_difference`."""
    one_by_one = not comparison.relative_rms <= OUTPUT_TOLERANCE
    first = first_difference(target, folder, runner, tensors, arrays, OUTPUT_TOLERANCE, one_by_one=one_by_one)
    return dataclasses.replace(comparison, first_difference=first)


def at_default_settings(
    folder: Path, target: Target, runner: Runner, graph: Graph, batch: Batch, reference: Reference
) -> float | None:
    """`own_difference` of the first batch."""

    def ran(own: Runner) -> Evaluation:
        run = artefact_runner(own, graph)
        return evaluate(run, [batch], reference.task, "run at default settings", differing_from=reference)

    return own_difference(partial(target.load, folder, graph), runner, ran)


def own_difference(load: Callable[..., Runner], runner: Runner, run: Callable[[Runner], Evaluation]) -> float | None:
    """`relative_rms` under the runtime's own settings: inf if it fails, None if the runner has these settings."""
    try:
        own = load(default_settings=True)
        return None if own.environment == runner.environment else farthest(run(own))
    except TargetMismatch:
        return math.inf


def amplification(simulated: Graph, batches: Iterable[Batch], reference: Reference) -> float:
    """How far a simulation is from itself, as `relative_rms`, where inputs and all that is quantized grow by 2^-23.

    A runtime sums in another order, so that it too differs in the last place. Where that alone moves outputs, a
    difference of such a size does not show a wrong file.
    """
    module = simulated.module
    quantized = [
        node.name
        for node in module.graph.find_nodes(op="call_module")
        if isinstance(quantizer := module.get_submodule(str(node.target)), Quantizer) and quantizer.axis is None
    ]
    walker = Walker(module, dict.fromkeys(quantized, lambda run, args: run(_moved(args[0]), *args[1:])))

    def run(inputs: Inputs) -> Any:
        return walker.returned(simulated.leaves(inputs.map(_moved)))

    moved = evaluate(run, batches, reference.task, "move by the last place", differing_from=reference)
    return farthest(moved)


def _moved(x: Tensor) -> Tensor:
    return x * (1 + LAST_PLACE) if x.is_floating_point() else x


def farthest(given: Evaluation) -> float:
    """The largest `relative_rms` of any output and group of channels."""
    costly = [difference for difference in given.differences.values() if difference.head.costs]
    return max(group.relative_rms for difference in costly for group in groups_of(difference))


def predicted_bytes(graph: Graph, plan: Plan) -> dict[str, int]:
    """Layer -> bytes of its weight and scales in the target's file, predicted before it is written.

    Args:
        graph: The simulation of the plan, since bytes may follow the integers; or the captured graph.
        plan: A scheme for every layer.
    """
    return weight_bytes_of(graph, plan, find_target(plan.target))


def compare(
    folder: Path,
    target: str | Target,
    predicted: dict[str, int],
    deployed: Evaluation,
    *,
    environment: Mapping[str, str],
    default: float | None = None,
    amplify: Callable[[], float | None] = lambda: None,
    more: Sequence[str] = (),
) -> Comparison:
    """Compare the outputs, by their differences from the simulation's, and the bytes in the file with the prediction.

    `environment` is that of the runner, `default` what `at_default_settings` returned. `amplify` is called where
    outputs differ too much, or in `more` ways, see `problems_of_sizes`.
    """
    target = find_target(target)
    weights = target.stored(folder)
    stored = {name: weight.weight_bytes for name, weight in weights.items()}
    apart_of = deployed.differences
    found = {name: groups_of(difference) for name, difference in apart_of.items() if difference.head.costs}
    worst = {name: max(groups, key=lambda group: group.relative_rms) for name, groups in found.items()}
    agreements = {name: difference.agreement for name, difference in apart_of.items() if difference.head.answers}
    problems = [f"the file holds no weight of {name}" for name in predicted if name not in stored]
    share, least = target.bytes_tolerance
    for name, expected in predicted.items():
        held = stored.get(name, expected)
        if abs(held - expected) > max(share * expected, least):
            problems.append(f"{name} takes {held:,} bytes in the file, {expected:,} were predicted")
    alone, apart = len(apart_of) == 1, list[str]()
    for name, group in worst.items():
        if not group.relative_rms <= OUTPUT_TOLERANCE:
            whole = len(found[name]) == 1
            what = ("" if alone else f" {name}") + ("" if whole else f", channels {_listed(group.channels)},")
            subject = f"outputs{what} differ" if alone else f"output{what} differs"
            apart.append(f"{subject} by {group.relative_rms:.1%} of their spread (allowed {OUTPUT_TOLERANCE:.0%})")
    count = deployed.num_samples
    for name, share in agreements.items():
        if round((1 - share) * count) > max(1, ANSWERS_TOLERANCE * count):
            of = "" if alone else f" of output {name}"
            apart.append(f"top answers{of} agree on {share:.2%} only (at least {1 - ANSWERS_TOLERANCE:.0%} wanted)")
    apart.extend(more)
    largest = max(group.relative_rms for group in worst.values())
    amplified = amplify() if apart else None
    if amplified is None or not largest <= EXPLAINS * amplified:
        problems += apart
        if apart and any(weight.types.startswith(BYTES) for weight in weights.values()) and target.overflows():
            problems.append(OVERFLOW)
    return Comparison(
        num_samples=count,
        max_abs_diff=max(group.largest for groups in found.values() for group in groups),
        relative_rms=largest,
        agreement=min(agreements.values(), default=None),
        accuracy=deployed.accuracy,
        weight_bytes=sum(stored.values()),
        predicted_bytes=sum(predicted.values()),
        file_bytes=file_bytes(target, folder),
        outputs={name: group.relative_rms for name, group in worst.items()},
        problems=tuple(problems),
        at_default_settings=default,
        exact_settings=target.exact(environment),
        amplification=amplified,
    )


#: How types of weights begin that are stored in 8 bits.
BYTES = ("i8", "u8", "int8", "uint8")
#: Why outputs may differ on some processors.
OVERFLOW = (
    "on this processor, which has no VNNI, sums of products with 8-bit weights overflow in the runtime: take fewer "
    "bits, as --choices w4a8,w6a8, or verify on the processor that will run the file"
)
#: What is said of a batch of other lengths.
SHORTER = "shorter samples"
#: What is said of a small batch -> its inputs, and what the simulation does on them.
Sizes = Mapping[str, tuple[Inputs, Reference]]


def simulated_at_sizes(simulated: Graph, inputs: Inputs, task: Task) -> Sizes:
    """One sample, three, and where dimensions are free a batch with three quarters of them, if the network takes it."""
    sizes = {name: inputs.rows(rows) for name, rows in few_rows(inputs.batch_size).items()}
    if simulated.dynamic:
        leaves, structure = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
        cut = [
            leaf[tuple(slice(-(-3 * size // 4) if axis in axes else size) for axis, size in enumerate(leaf.shape))]
            if axes
            else leaf
            for leaf, axes in zip(leaves, simulated.dynamic, strict=True)
        ]
        sizes[SHORTER] = Inputs(*pytree.tree_unflatten(cut, structure))
    done = {}
    for name, batch in sizes.items():
        # the network itself may not take a length
        with suppress(InvalidInput) if name == SHORTER else nullcontext():
            reference = Reference.recorded(simulated, task)
            evaluate(reference, [(batch, None)], task, f"simulate {name}")
            done[name] = batch, reference
    return done


def few_rows(count: int) -> dict[str, list[int]]:
    """What is said of a small batch -> its samples among that many."""
    return {"one sample": [0], "three samples": [number % count for number in range(3)]}


def problems_of_sizes(run: Callable[[Inputs], Any], sizes: Sizes, deployed: Evaluation) -> list[str]:
    """How the artefact differs from the simulation on these batches, relative to the spread over the whole data.

    A runtime may take another way for one sample, for a few, or for other lengths.
    """
    problems = []
    for size, (batch, wanted) in sizes.items():
        try:
            given = evaluate(run, [(batch, None)], wanted.task, f"run {size}", differing_from=wanted)
        except TargetMismatch as error:
            problems.append(f"on {size} alone: {error}")
            continue
        for name, difference in given.differences.items():
            if difference.head.costs:
                worst = max(group.relative_rms for group in groups_of(difference, deployed.differences[name].moments))
                if not worst <= FEW_TOLERANCE:
                    of = f" of {name}" if len(given.differences) > 1 else ""
                    limit = f"allowed {FEW_TOLERANCE:.0%}"
                    problems.append(f"on {size} alone outputs{of} differ by {worst:.1%} of their spread ({limit})")
    return problems


@dataclass(frozen=True)
class Group:
    """How far some channels of an output are from the simulation's.

    Attributes:
        channels: Their numbers.
        relative_rms: Root mean square difference / root mean square deviation of each channel from its mean.
        largest: Largest difference.
    """

    channels: tuple[int, ...]
    relative_rms: float
    largest: float


def groups_of(difference: Difference, spread_of: Tensor | None = None) -> list[Group]:
    """The difference of one output in each group of channels of like spread, which is within a factor of LIKE.

    So what is small, as scores of 0..1 beside boxes in pixels, counts in its own unit. The spread is that of the
    reference's outputs, or of those with the moments `spread_of`.
    """
    total = difference.moments if spread_of is None else spread_of
    if float(total[0].max()) < 2:  # one number a channel: the channels together show the spread
        total = total.sum(1, keepdim=True).expand_as(total)
    spreads, power = spread(total), difference.squares / difference.moments[0].clamp(min=1)
    groups: list[list[int]] = []
    for channel in spreads.argsort().tolist():
        if not groups or spreads[channel] > LIKE * spreads[groups[-1][0]]:
            groups.append([])
        groups[-1].append(channel)
    return [
        Group(
            tuple(sorted(group)),
            float((power[group].mean() / spreads[group].square().mean()).sqrt()),
            float(difference.largest[group].max()),
        )
        for group in groups
    ]


def _listed(channels: tuple[int, ...]) -> str:
    """The first few numbers."""
    text = ", ".join(map(str, channels[:5]))
    return f"{text} and {len(channels) - 5} more" if len(channels) > 5 else text
