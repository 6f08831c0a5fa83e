"""Finished parts of a rounding, kept in files, so that an interrupted run goes on where it stopped."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixbit.errors import InvalidInput
from mixbit.files import write_bytes
from mixbit.identity import source_digest, tensors_digest, text_digest
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
    """Keep one part as `name`.safetensors, whole or not at all; nothing where there is no folder.

    Args:
        folder: Made where it is not there.
        name: Of the part, as files may be called.
        question: What `question_digest` returned.
        tensors: By name.

    Raises:
        InvalidInput: it cannot be written there.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    content = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    write_bytes(folder / f"{name}.safetensors", safetensors.torch.save(content, {"question": question}))


def load(folder: Path | None, name: str, question: str) -> dict[str, Tensor] | None:
    """The part that `save` kept under that name, on the CPU; None where there is none, or of another question.

    Raises:
        InvalidInput: a file of that name is something else.
    """
    path = None if folder is None else folder / f"{name}.safetensors"
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("question") != question:
                return None
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{path}: holds no part of a rounding ({error}); delete it") from error
