"""torch.export and copies of what it made, with errors that name the line of the user's code."""

import copy
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from mixbit.core import InvalidInput, UnsupportedModel
from mixbit.core.batches import Inputs
from mixbit.core.io.user_code import users_code, users_frames


def export_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, *, functional: bool = False
) -> ExportedProgram:
    """The model as an exported program of functional operators.

    Args:
        model: The module.
        args: Example inputs by position.
        kwargs: Example inputs by keyword.
        shapes: The dimensions that may change, as torch.export takes them.
        functional: Whether the module holds functional operators alone, as a captured one does, which saves a pass.

    Raises:
        UnsupportedModel: `torch.export` cannot follow the code.
    """

    def explained(error: BaseException) -> UnsupportedModel:
        return UnsupportedModel(_explain(error, model, Inputs(args, kwargs)))

    with users_code(explained), without_torchs_warnings(), without_logs():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        return program if functional else program.run_decompositions({})


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """A deep copy."""
    with without_torchs_warnings():
        return copy.deepcopy(module)


@contextmanager
def without_torchs_warnings() -> Iterator[None]:
    """Silence two warnings of torch about its own code: on tree leaves, and on weights of recurrent modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*_flat_weights.*", category=UserWarning)
        yield


@contextmanager
def without_logs() -> Iterator[None]:
    """Silence the logs of torch's exporters: the errors that they raise say more."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)


def _explain(error: BaseException, model: nn.Module, inputs: Inputs) -> str:
    """The line of the user's code where the export stopped, torch's reason, and what to do."""
    frames = _frames(error) or _frames(_failure_of_a_larger_batch(model, inputs))
    forward = [frame for frame in frames if frame.name == "forward"] or frames
    where = f"{forward[-1].filename}:{forward[-1].lineno}: {forward[-1].line}" if forward else "the model"
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    fixed = re.search(r"specialized it to be a constant \((\d+)\)", str(error))
    if fixed is not None:
        reason = f"the code fixes the batch size at {fixed[1]}"
    return (
        f"torch.export cannot follow the model at {where}\n  {type(error).__name__}: {reason}\n"
        "  Way out: let tensors' values not decide the path (torch.where, torch.cond), and let the batch size not be "
        "fixed in the code (x.size(0) or -1 in place of len(x) or a number); `torch.export.draft_export` lists every "
        "such place"
    )


def _frames(error: BaseException | None) -> list[traceback.FrameSummary]:
    """The frames of the error and of its causes that are the user's code, not torch's or ours."""
    return [frame for cause in _causes(error) for frame in users_frames(cause)]


def _failure_of_a_larger_batch(model: nn.Module, inputs: Inputs) -> BaseException | None:
    """What the model raises for one sample more: where the batch size is fixed, its traceback names the place."""
    larger = inputs.map(lambda leaf: torch.cat([leaf, leaf[:1]]) if leaf.ndim > 0 else leaf)
    try:
        with users_code("the model fails"), torch.no_grad():
            model(*larger.args, **larger.kwargs)
    except InvalidInput as error:
        return error
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
