"""Statistics of batch norms, taken again from data before they are folded."""

import copy
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mixbit.core import InvalidInput, track
from mixbit.core.batches import Inputs, split_batches
from mixbit.core.io.user_code import users_code
from mixbit.quantization.statistics import RunningMean


@torch.no_grad()
def reestimated(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of the model, in eval mode, whose batch norms hold the statistics of these data.

    mean = E[x] and variance = E[(x - mean)^2] of each channel of what a norm reads, over all samples of all batches and
    all positions: pooled, so that it does not matter how the data is cut into batches. The norms are taken one after
    the other, in execution order, each on inputs as the norms before make them with their new statistics: so in eval
    mode every norm returns mean 0 and variance 1 on the data (before its own scale and shift). The data is gone through
    once for each norm, as far as that norm. A channel that is constant on the data keeps its variance. (Wu and Johnson
    2021, section 3, arXiv 2105.07576, who take one pass, in which each norm divides by the statistics of the batch.)

    Args:
        model: The trained network; it is left as it is.
        batches: Calibration batches; labels are allowed and not needed. Kept in memory.

    Returns:
        The copy.

    Raises:
        InvalidInput: there is no batch norm with running statistics, no batch, a single value for a channel, NaN or
            inf; or the model cannot be copied, or fails on a batch.
    """
    batches = [inputs for inputs, _ in split_batches(model, batches)]
    try:
        result = copy.deepcopy(model).eval()
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f"batch norms: the model cannot be copied: {error}; leave re-estimation out") from error
    for name, norm, calls in track(_in_order(result, batches[0]), "re-estimate batch norms"):
        moments = RunningMean((norm.num_features,))
        for number, inputs in enumerate(batches):
            _run_until(result, norm, calls, inputs, moments, f"batch {number}")
        _set_statistics(name, norm, moments)
    return result


class _Seen(Exception):
    """Ends a forward pass behind what was to be seen."""


def _in_order(model: nn.Module, inputs: Inputs) -> list[tuple[str, _BatchNorm, int]]:
    """Name, module and number of calls of each batch norm with running statistics, in the order of first calls."""
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    calls: dict[_BatchNorm, int] = {}

    def count(norm: Any, _: Any) -> None:
        calls[norm] = calls.get(norm, 0) + 1

    _run(model, [*names], count, inputs, "batch 0")
    if not calls:
        raise InvalidInput("the model runs no batch norm with running statistics; leave their re-estimation out")
    return [(names[norm], norm, number) for norm, number in calls.items()]


def _run_until(
    model: nn.Module, norm: _BatchNorm, calls: int, inputs: Inputs, moments: RunningMean, place: str
) -> None:
    """Add to the moments what the norm reads in so many calls of one forward pass, and leave the rest of the pass."""
    left = calls

    def see(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal left
        moments.update(args[0].movedim(1, -1).flatten(0, -2))
        left -= 1
        if left == 0:
            raise _Seen

    _run(model, [norm], see, inputs, place)


def _run(
    model: nn.Module, norms: list[_BatchNorm], see: Callable[[Any, Any], None], inputs: Inputs, place: str
) -> None:
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    inputs = inputs.to(device)
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        with users_code(f"{place}: the model fails on it"), suppress(_Seen):
            model(*inputs.args, **inputs.kwargs)
    finally:
        for hook in hooks:
            hook.remove()


def _set_statistics(name: str, norm: _BatchNorm, moments: RunningMean) -> None:
    if moments.count < 2:
        raise InvalidInput(
            f"{name}: sees a single value for each channel, which has no variance; give more samples, or leave the "
            "re-estimation of batch norms out"
        )
    mean, variance = moments.mean, moments.squares / moments.count
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise InvalidInput(f"{name}: reads NaN or inf on the data; clean it, or leave re-estimation out")
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(torch.where(variance > 0, variance, norm.running_var.cpu().double()))
