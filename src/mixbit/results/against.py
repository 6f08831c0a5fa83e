"""A file of another quantizer beside the artefact of a folder: both run on the folder's check set."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import Inputs, InvalidInput, Runner, Target, TargetMismatch, Task, find_target, quoted, scratch_folder
from mixbit.graph import Reference, evaluate
from mixbit.results.check_set import CheckSet
from mixbit.results.recheck import checked_outputs, open_folder
from mixbit.targets.latency import Ratio, paired_times
from mixbit.targets.size import file_bytes
from mixbit.targets.verify import farthest

#: Ending of a file -> target whose runtime opens it.
RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert"}


@dataclass(frozen=True)
class Against:
    """Another file, and the artefact beside it.

    Attributes:
        file: The other file.
        runtime: Target whose runtime ran it.
        num_samples: Samples that both ran on.
        accuracy, own_accuracy: Of the other file and of the artefact; None without labels.
        agreement: Share of equal top answers, of the output where it is least; None where no output has any.
        relative_rms: Root mean square difference of the other's outputs from the artefact's / spread of the latter.
        file_bytes, own_file_bytes: Of the files that the runtimes load.
        latency_ratio: Time of one sample in the other file by that in the artefact, in turn, each with its own runtime
            under settings that compute as a simulation does.
    """

    file: str
    runtime: str
    num_samples: int
    accuracy: float | None
    own_accuracy: float | None
    agreement: float | None
    relative_rms: float
    file_bytes: int
    own_file_bytes: int
    latency_ratio: Ratio

    def __str__(self) -> str:
        right = ""
        if self.accuracy is not None and self.own_accuracy is not None:
            right = f"accuracy {self.accuracy:.2%}, here {self.own_accuracy:.2%}; "
        alike = f"; {self.agreement:.2%} equal top answers" if self.agreement is not None else ""
        return (
            f"{self.file} ({self.runtime}), {self.num_samples} samples: {right}{self.file_bytes:,} bytes, here "
            f"{self.own_file_bytes:,}; {self.latency_ratio} of the time here; outputs {self.relative_rms:.2%} of their "
            f"spread apart{alike}"
        )


def compare_with(folder: Path, file: Path, model: Any = None) -> Against:
    """Run the file and the artefact of the folder on its check set.

    Inputs and outputs go by name where the file has the artefact's names, else by position. Files for one sample run
    sample by sample.

    Args:
        folder: Of a run.
        file: `.onnx`, `.xml` with its `.bin` beside it, or `.tflite`, of any quantizer; with weights in a further file
            only as mixbit calls both.
        model: The network, for target packed.

    Raises:
        InvalidInput: No such file, another ending, a runtime that is not installed, or as `recheck` does.
        TargetMismatch: The runtime cannot open the file or run it on the inputs, or it returns other shapes.
    """
    other = _runtime_of(file)
    result, check, graph = open_folder(folder, model)
    target = find_target(result.target)
    task = replace(Task.named(result.task), batch_axes=check.batch_axes)
    runner = target.load(folder, graph)
    with scratch_folder() as scratch:
        _copied(file, other, scratch)
        with _by_its_name(file, scratch / other.files[0]):
            run_theirs, theirs = _opened(other, scratch, file, check, runner)
        batches = [(check.inputs, check.labels)]
        held = checked_outputs(
            runner.run([tensor.numpy() for tensor in check.inputs.tensors]), check, check.inputs.batch_size
        )
        own = Reference(task, lambda *_: held)
        with _by_its_name(file, scratch / other.files[0]):
            ran = evaluate(theirs, batches, task, f"run {file.name}", differing_from=own)
        mine = evaluate(own, batches, task, "run the artefact")
        sample = [tensor.numpy() for tensor in check.inputs.rows([0]).tensors]
        times = paired_times({"theirs": run_theirs, "own": runner.run}, sample, "time both")
        return Against(
            str(file),
            other.name,
            check.inputs.batch_size,
            ran.accuracy,
            mine.accuracy,
            min((each.agreement for each in ran.differences.values() if each.head.answers), default=None),
            farthest(ran),
            file_bytes(other, scratch),
            file_bytes(target, folder),
            times.ratio("theirs", of="own"),
        )


def _runtime_of(file: Path) -> Target:
    if not file.is_file():
        raise InvalidInput(f"--against {file}: no such file")
    if file.suffix not in RUNTIMES:
        raise InvalidInput(f"--against {file}: give a file that ends with {', '.join(RUNTIMES)}")
    target = find_target(RUNTIMES[file.suffix])
    target.require()
    return target


def _copied(file: Path, target: Target, folder: Path) -> None:
    """Copy the file, and those beside it that the runtime loads too, under the target's names."""
    for name in target.files:
        source = file.with_suffix(Path(name).suffix)
        if not source.is_file():
            raise InvalidInput(f"--against {file}: {source.name} is not beside it")
        shutil.copyfile(source, folder / name)
    for name in target.more_files if file.name == target.files[0] else ():  # a file says what they are called
        if file.with_name(name).is_file():
            shutil.copyfile(file.with_name(name), folder / name)


@contextmanager
def _by_its_name(file: Path, copied: Path) -> Iterator[None]:
    """Errors name the user's file where they name its copy."""
    try:
        yield
    except TargetMismatch as error:
        raise TargetMismatch(str(error).replace(str(copied), str(file))) from error


def _opened(
    target: Target, folder: Path, file: Path, check: CheckSet, own: Runner
) -> tuple[Callable[[list[NDArray[Any]]], list[NDArray[Any]]], Callable[[Inputs], dict[str, Tensor]]]:
    """What runs the other file, its inputs and outputs in the order of this one's: on arrays, and on a check set's."""
    target.try_apart(folder, [tensor.numpy() for tensor in check.inputs.rows([0]).tensors])
    runner = target.load(folder)
    names, returned = runner.names
    held = own.names[0] or list(check.inputs.kwargs) or [""] * len(check.inputs.tensors)  # some files name none
    places = _places(names, held, "inputs", file)
    back = _places(check.returned, returned, "outputs", file)

    def run(arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        outputs = runner.run([arrays[place] for place in places])
        return [outputs[place] for place in back]

    def by_sample(inputs: Inputs) -> list[NDArray[Any]]:
        rows = [[tensor.numpy() for tensor in inputs.rows([row]).tensors] for row in range(inputs.batch_size)]
        axes = [check.batch_axes.get(name, 0) or 0 for name in check.returned]
        return [
            np.concatenate(parts, axis) for parts, axis in zip(zip(*map(run, rows), strict=True), axes, strict=True)
        ]

    def outputs(inputs: Inputs) -> dict[str, Tensor]:
        try:
            arrays = run([tensor.numpy() for tensor in inputs.tensors])
        except TargetMismatch:
            arrays = by_sample(inputs)
        return checked_outputs(arrays, check, inputs.batch_size)

    return run, outputs


def _places(wanted: list[str], given: list[str], what: str, file: Path) -> list[int]:
    """Where each of these ports stands among the given ones: by name, or by position where names differ."""
    if set(wanted) <= set(given):
        return [given.index(name) for name in wanted]
    if len(wanted) > len(given) or (what == "inputs" and len(wanted) != len(given)):
        raise TargetMismatch(f"{file}: its {what} are {quoted(given if what == 'outputs' else wanted)}, not those here")
    return list(range(len(wanted)))
