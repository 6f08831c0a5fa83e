"""Names, types and shapes of what captured networks take and return."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mixbit.core import Port
from mixbit.graph import ports_of
from mixbit.graph.capture import capture


@dataclass
class Detected:
    logits: torch.Tensor
    boxes: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None = None


class Net(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.linear, self.made = nn.Linear(4, 3), made

    def forward(self, input, pair=None):  # noqa: A002 users call it so
        return self.made(self.linear(input), input)


RETURNED = {
    "alone": (lambda y, x: y, ["output"]),
    "tuple": (lambda y, x: (y, x * 2), ["output_0", "output_1"]),
    "dict": (lambda y, x: {"logits": y, "boxes": x * 2}, ["logits", "boxes"]),
    "dataclass": (lambda y, x: Detected(y, x * 2), ["logits", "boxes"]),
    "entries of entries": (
        lambda y, x: Detected(y, x * 2, (y + 1, y + 2)),
        ["logits", "boxes", "hidden_0", "hidden_1"],
    ),
    "an input's name": (lambda y, x: {"input": y, "input_output": x * 2}, ["input_output", "input_output_output"]),
    "numbers as keys": (lambda y, x: {3: y, "7x": x * 2}, ["output_3", "output_7x"]),
    "the same twice": (lambda y, x: {"a": y, "b": y}, ["a", "b"]),
    "beside what is no tensor": (lambda y, x: (y, None, 3, x * 2), ["output_0", "output_3"]),
}


@pytest.mark.parametrize("case", RETURNED)
def test_outputs_are_called_as_the_model_returns_them(case):
    made, names = RETURNED[case]
    ports = ports_of(capture(Net(made).eval(), torch.randn(2, 4)))
    assert ports.inputs == (Port("input", "float32", ("batch", 4)),)
    assert [port.name for port in ports.outputs] == names


def test_dimensions_of_any_size_are_called_after_the_first_input_that_has_them():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, input_ids, mask):
            x = self.table(input_ids) * mask.unsqueeze(-1)
            return {"logits": self.linear(x), "pooled": x.mean(1), "rows": x.flatten(0, 1)}

    example = {"input_ids": torch.randint(0, 9, (2, 5)), "mask": torch.ones(2, 5)}
    ports = ports_of(capture(Tokens().eval(), example, {"input_ids": [1], "mask": [1]}))
    assert ports.inputs == (
        Port("input_ids", "int64", ("batch", "input_ids_dim1")),
        Port("mask", "float32", ("batch", "input_ids_dim1")),
    )
    shapes = {port.name: port.shape for port in ports.outputs}
    assert shapes == {
        "logits": ("batch", "input_ids_dim1", 2),
        "pooled": ("batch", 4),
        "rows": ("batch*input_ids_dim1", 4),
    }


def test_tensors_of_a_pair_are_numbered():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, pair, *, scale):
            return self.linear(pair[0] + pair[1]) * scale

    example = {"pair": (torch.randn(2, 4), torch.randn(2, 4)), "scale": torch.randn(2, 1)}
    assert [port.name for port in ports_of(capture(Pair().eval(), example)).inputs] == ["pair_0", "pair_1", "scale"]
