"""Which figures of result.json are not what verifying measures."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mixbit.core import Runner, StoredWeight
from mixbit.graph import Evaluation
from mixbit.targets.verify import ANSWERS_TOLERANCE, OUTPUT_TOLERANCE, Comparison

if TYPE_CHECKING:
    from mixbit.results.result import Result

#: Figures of the files.
BYTES = ("weight_bytes", "predicted_bytes", "file_bytes")
#: How many times further outputs may be from the simulation on some of the samples than on all.
SOME_OF_ALL = 2.0


def broken_promises(
    result: "Result",
    comparison: Comparison,
    all_samples: int,
    stored: Mapping[str, StoredWeight],
    simulated: Evaluation,
    deployed: Evaluation,
) -> list[str]:
    """What result.json says and the check set denies, one sentence each.

    Bytes, and how each weight is stored, are equal to the last byte on any machine. Answers may round to the other side
    on another processor: ANSWERS_TOLERANCE of them, at least one. The check set may hold some samples of all: then the
    others can only make so much of a difference. What clocks said, and what is told of the float network and of uniform
    plans, is not measured again.

    `all_samples` are those that the run was verified on, as the check set says; `simulated` and `deployed` are of the
    check set.
    """
    said, sizes = result.deployed, {name: getattr(comparison, name) for name in BYTES}
    broken = [
        f"result.json: deployed.{name} is {said.get(name)}, and {measured:,} on disk"
        for name, measured in sizes.items()
        if said.get(name) != measured
    ]
    broken += [
        f"the file holds a weight of {name}, which is no layer of the plan" for name in stored.keys() - result.layers
    ]
    for name, row in result.layers.items():
        weight = stored.get(name, StoredWeight(0, "not found"))
        if (row.weight_bytes, row.stored) != (weight.weight_bytes, weight.types):
            held = f"{weight.weight_bytes:,} bytes of {weight.types}"
            broken.append(
                f"result.json: layers.{name} is {row.weight_bytes:,} bytes of {row.stored}; the file holds {held}"
            )
    if result.outputs.keys() != comparison.outputs.keys():
        broken.append(f"result.json: outputs are {[*result.outputs]}, the check set has {[*comparison.outputs]}")
    count = comparison.num_samples
    if said.get("num_samples") != all_samples:
        broken.append(f"result.json: deployed.num_samples is {said.get('num_samples')}, of the check set {all_samples}")
    for part, evaluation in (("simulated", simulated), ("deployed", deployed)):
        right, labelled = evaluation.answers.sum(axis=0).tolist()
        if labelled and count in (labelled, all_samples):
            claim = getattr(result, part).get("accuracy")
            broken += _share(f"{part}.accuracy", claim, right / labelled, count, all_samples)
    if comparison.agreement is not None and count == all_samples:
        broken += _share("deployed.agreement", said.get("agreement"), comparison.agreement, count, all_samples)
    said_apart, apart = said.get("relative_rms", math.inf), comparison.relative_rms
    if count == all_samples:
        fits = abs(said_apart - apart) <= OUTPUT_TOLERANCE
    else:
        fits = said_apart < math.inf and apart <= max(OUTPUT_TOLERANCE, SOME_OF_ALL * said_apart)
    if not fits:
        broken.append(f"result.json: deployed.relative_rms is {said_apart:.3g}, measured {apart:.3g}")
    return broken


def other_names(result: "Result", runner: Runner) -> list[str]:
    """Inputs and outputs that the file calls otherwise than result.json says, a sentence each."""
    if result.ports is None or runner.names == ([], []):
        return []
    said = [[port.name for port in some] for some in (result.ports.inputs, result.ports.outputs)]
    return [
        f"result.json: the {what} are {', '.join(wanted)}; in the file {', '.join(names)}"
        for what, wanted, names in zip(("inputs", "outputs"), said, runner.names, strict=True)
        if wanted != names
    ]


def _share(name: str, said: float | None, measured: float, count: int, all_samples: int) -> list[str]:
    """The sentence, unless the share of all samples may be what is said where that of `count` of them is measured."""
    slack = max(1.0, ANSWERS_TOLERANCE * count) + 1e-6 * all_samples
    least, most = measured * count - slack, all_samples - (1 - measured) * count + slack
    if said is not None and least <= said * all_samples <= most:
        return []
    return [f"result.json: {name} is {said}, of {count} of {all_samples} samples it is {measured:.4g}"]
