"""TensorFlow Lite Micro behind the functions of LiteRT's interpreter that target litert calls."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Micro:
    """A file that TensorFlow Lite Micro runs, a sample after the other: the sizes of its tensors are fixed.

    Attributes:
        litert: LiteRT's interpreter of the same file, which tells what it takes and returns.

    `micro` is that of TensorFlow Lite Micro.
    """

    def __init__(self, micro: Any, litert: Any) -> None:
        self.litert = litert
        self._run = micro
        self._inputs = [port["index"] for port in litert.get_input_details()]
        self._outputs = [port["index"] for port in litert.get_output_details()]
        self._sizes = {port["index"]: tuple(port["shape"].tolist()) for port in litert.get_input_details()}
        self._given: dict[int, NDArray[Any]] = {}
        self._made: dict[int, NDArray[Any]] = {}

    def get_input_details(self) -> list[dict[str, Any]]:
        """LiteRT's."""
        return self.litert.get_input_details()

    def get_output_details(self) -> list[dict[str, Any]]:
        """LiteRT's."""
        return self.litert.get_output_details()

    def resize_tensor_input(self, index: int, shape: tuple[int, ...], *, strict: bool) -> None:
        """Take inputs of another batch size; raises ValueError for other sizes, which the file does not have."""
        if shape[1:] != self._sizes[index][1:]:
            raise ValueError(f"TensorFlow Lite Micro takes inputs {self._sizes[index]}, not {shape}")
        self.litert.resize_tensor_input(index, shape, strict=strict)

    def allocate_tensors(self) -> None:
        """Let LiteRT know the sizes."""
        self.litert.allocate_tensors()

    def set_tensor(self, index: int, array: NDArray[Any]) -> None:
        """Give an input, of all samples."""
        self._given[index] = array

    def invoke(self) -> None:
        """Run all samples, each alone; the whole at once where the file was captured with that many."""
        arrays = [self._given[index] for index in self._inputs]
        whole = all(array.shape == self._sizes[index] for index, array in zip(self._inputs, arrays, strict=True))
        samples = [arrays] if whole else [[array[row : row + 1] for array in arrays] for row in range(len(arrays[0]))]
        rows = [self._one(sample) for sample in samples]
        self._made = {index: np.concatenate(parts) for index, *parts in zip(self._outputs, *rows, strict=True)}

    def _one(self, sample: list[NDArray[Any]]) -> list[NDArray[Any]]:
        for place, array in enumerate(sample):
            self._run.set_input(array, place)
        self._run.invoke()
        return [np.array(self._run.get_output(place)) for place in range(len(self._outputs))]

    def get_tensor(self, index: int) -> NDArray[Any]:
        """An output, of all samples."""
        return self._made[index]

    def _get_ops_details(self) -> list[dict[str, Any]]:
        return self.litert._get_ops_details()
