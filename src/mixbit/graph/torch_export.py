"""torch.export of models and of graphs, with errors that name the line of the user's code."""

import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from mixbit.core import InvalidInput, UnsupportedModel
from mixbit.core.batches import Inputs
from mixbit.core.io.user_code import users_code, users_frames
from mixbit.graph.graph import Graph, without_torchs_warnings


def export_model(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The model as an exported program of functional operators with a dynamic batch.

    Raises:
        UnsupportedModel: `torch.export` cannot follow the code.
    """
    shapes = pytree.tree_map(_dynamic_batch, dict(inputs.kwargs) if inputs.kwargs else inputs.args)
    return _export(model, inputs, shapes, functional=False)


def export_graph(graph: Graph, lifted: Mapping[str, Tensor] | None = None) -> ExportedProgram:
    """The graph, quantizers included, as an exported program of flat inputs with a dynamic batch.

    Args:
        graph: In float or simulated.
        lifted: Name of a node -> value; each of these nodes becomes one more input, in this order.
    """
    module, lifted = graph.copy().module.eval(), lifted or {}
    module.graph.set_codegen(CodeGen())
    for name in lifted:
        replaced = next(node for node in module.graph.nodes if node.name == name)
        with module.graph.inserting_after(module.graph.find_nodes(op="placeholder")[-1]):
            replaced.replace_all_uses_with(module.graph.placeholder(f"lifted_{name}"))
        module.graph.erase_node(replaced)
    module.graph.eliminate_dead_code()
    module.recompile()
    leaves = graph.ordered(graph.example)
    shapes = (*map(_dynamic_batch, leaves), *[None] * len(lifted))
    return _export(module, Inputs((*leaves, *lifted.values()), {}), shapes, functional=True)


def _export(model: nn.Module, inputs: Inputs, shapes: Any, *, functional: bool) -> ExportedProgram:
    """The exported program; a module that is functional already, as a captured one is, needs no decompositions."""
    with (
        users_code(lambda error: UnsupportedModel(_explain(error, model, inputs))),
        without_torchs_warnings(),
        without_logs(),
    ):
        program = torch.export.export(model, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes)
        return program if functional else program.run_decompositions({})


def _dynamic_batch(leaf: Any) -> dict[int, Any] | None:
    return {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.ndim > 0 else None


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
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return [frame for cause in causes for frame in users_frames(cause)]


def _failure_of_a_larger_batch(model: nn.Module, inputs: Inputs) -> BaseException | None:
    """What the model raises for one sample more: where the batch size is fixed, its traceback names the place."""
    larger = inputs.map(lambda leaf: torch.cat([leaf, leaf[:1]]) if leaf.ndim > 0 else leaf)
    try:
        with users_code("the model fails"), torch.no_grad():
            model(*larger.args, **larger.kwargs)
    except InvalidInput as error:
        return error
    return None
