"""What tools of the contest take and return."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Method:
    """One way of a tool to quantize.

    Attributes:
        budgets: Mean bits of weights that it can be asked for.
        weights_only: Whether activations stay in float.
    """

    budgets: Sequence[float]
    weights_only: bool = False


@dataclass(frozen=True)
class Job:
    """What every tool is given.

    Attributes:
        model: The float network, in eval mode.
        inputs: Batches to calibrate on.
        labels: Those of each batch, or the float network's own answers where the data has none.
        task: Name of a task of mixbit: `classification`, `multilabel` or `language`.
        mean_bits: Mean width of the weights, at most.
        folder: For files of the tool, empty.
    """

    model: nn.Module
    inputs: Sequence[Tensor]
    labels: Sequence[Tensor]
    task: str
    mean_bits: float
    folder: Path

    @property
    def num_weights(self) -> int:
        """Numbers in all weights: parameters of two dimensions and more."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.ndim > 1)

    def export_onnx(self) -> Path:
        """The float network as an ONNX file, with a free number of samples."""
        path = self.folder / "float.onnx"
        dynamic = ({0: torch.export.Dim("samples")},)
        torch.onnx.export(
            self.model, (self.inputs[0],), path, dynamo=True, dynamic_shapes=dynamic, external_data=False, verbose=False
        )
        return path


@dataclass(frozen=True)
class Stored:
    """A quantized weight: so many numbers in so many bits each, and so many scales, of 32 bits."""

    numel: int
    bits: float
    scales: int


@dataclass(frozen=True)
class Quantized:
    """What every tool returns.

    Attributes:
        run: The quantized network, on the inputs of one batch.
        weights: Those that are quantized; others count as float.
    """

    run: Callable[[Tensor], Tensor]
    weights: Sequence[Stored]
