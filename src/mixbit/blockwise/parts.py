"""Blocks and layers that are finished, kept in files, so that an interrupted run goes on where it stopped."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mixbit.identity import source_digest, tensors_digest, text_digest
from mixbit.kept import keep, take_up
from mixbit.reconstruction import Reconstruction
from mixbit.simulate import quantizers_of


def question_digest(asked: Reconstruction, method: str, **options: object) -> str:
    """A hash of all that the result depends on: networks, plan, data, task, seed, and the method with its options."""
    networks = [asked.graph.module, asked.simulated.module]
    told = [
        *(network.code for network in networks),
        *(tensors_digest(state[name] for name in sorted(state)) for state in (net.state_dict() for net in networks)),
        "" if asked.simulated.plan is None else asked.simulated.plan.model_dump_json(),
        *(inputs.describe() + tensors_digest(inputs.tensors) for inputs in asked.batches),
        tensors_digest(one.mask for one in quantizers_of(asked.simulated) if one.mask is not None),
        source_digest(asked.task),
        f"{asked.seed} {asked.bias_correction} {method} {sorted(options.items())}",
    ]
    return text_digest("\n".join(told))


def save(folder: Path | None, name: str, question: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep one part as `name`.safetensors in the folder, which answers what `question_digest` returned."""
    keep(_path(folder, name), question, tensors)


def load(folder: Path | None, name: str, question: str) -> dict[str, Tensor] | None:
    """The part that `save` kept under that name; None where there is none, or of another question."""
    found = take_up(_path(folder, name))
    return found[1] if found is not None and found[0] == question else None


def _path(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.safetensors"
