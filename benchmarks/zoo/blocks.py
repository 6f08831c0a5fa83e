"""Parts that several networks of the zoo are made of."""

from functools import reduce
from operator import add, mul

import torch
from torch import Tensor, nn

_JOINS = {
    "add": lambda parts: reduce(add, parts),
    "mul": lambda parts: reduce(mul, parts),
    "cat": lambda parts: torch.cat(parts, dim=1),
}


class Join(nn.Module):
    """Branches that read one tensor; their outputs are added, multiplied or concatenated."""

    def __init__(self, how: str, *branches: nn.Module) -> None:
        super().__init__()
        self.how, self.branches = how, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Join what the branches make of x."""
        return _JOINS[self.how]([branch(x) for branch in self.branches])


def residual(*body: nn.Module, shortcut: nn.Module | None = None) -> nn.Module:
    """The body's output added to its input."""
    return Join("add", nn.Sequential(*body), shortcut or nn.Identity())


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch norm and a function."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


def squeeze_excite(channels: int, gate: type[nn.Module] = nn.Sigmoid, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """The input times a factor for each channel that its means decide."""
    few = max(channels // 4, 4)
    layers = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, few, 1), act(), nn.Conv2d(few, channels, 1), gate())
    return Join("mul", nn.Identity(), nn.Sequential(*layers))


def inverted_residual(
    inputs: int, outputs: int, stride: int, act: type[nn.Module], excite: nn.Module | None = None, kernel: int = 3
) -> nn.Module:
    """Expand four times, depthwise, perhaps squeeze and excite, project; a residual where the shapes allow."""
    wide = 4 * inputs
    body = [conv(inputs, wide, 1, act=act), conv(wide, wide, kernel, stride, wide, act)]
    body += [excite] if excite else []
    body.append(conv(wide, outputs, 1, act=None))
    return residual(*body) if stride == 1 and inputs == outputs else nn.Sequential(*body)


def classifier(channels: int, classes: int) -> nn.Sequential:
    """Mean over positions, then a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
