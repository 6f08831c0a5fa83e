"""mixbit: how many bits each weight and each activation of a trained network needs.

Names load on first use, so that `import mixbit` and the command line start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixbit.core import (
        Budget as Budget,
        InfeasibleBudget as InfeasibleBudget,
        InvalidInput as InvalidInput,
        MaxDrop as MaxDrop,
        MixbitError as MixbitError,
        Plan as Plan,
        Scheme as Scheme,
        Sensitivity as Sensitivity,
        TargetMismatch as TargetMismatch,
        UnsupportedModel as UnsupportedModel,
    )
    from mixbit.core.task import Task as Task
    from mixbit.graph.capture import capture as capture
    from mixbit.graph.graph import Graph as Graph
    from mixbit.metric_study.study import study as study
    from mixbit.metrics import Estimate as Estimate
    from mixbit.metrics.measure import measure as measure
    from mixbit.pipeline.auto import auto_quantize as auto_quantize
    from mixbit.pipeline.settings import Settings as Settings
    from mixbit.pruning.prune import Removal as Removal, prune_channels as prune_channels
    from mixbit.quantization.batchnorm import reestimated as reestimated
    from mixbit.quantization.equalize import equalized as equalized
    from mixbit.quantization.offers import uniform_plan as uniform_plan
    from mixbit.roundings.quantize import quantize as quantize
    from mixbit.searches.front import front as front
    from mixbit.searches.search import search as search
    from mixbit.targets.export import export as export
    from mixbit.targets.verify import verify as verify
    from mixbit.training.finetune import finetune as finetune
    from mixbit.training.learnable import learnable as learnable, settled as settled
    from mixbit.training.loop import Training as Training

_HOMES = {
    "Budget": "core.budget",
    "Estimate": "metrics",
    "Graph": "graph.graph",
    "InfeasibleBudget": "core.errors",
    "InvalidInput": "core.errors",
    "MaxDrop": "core.budget",
    "MixbitError": "core.errors",
    "Plan": "core.plan",
    "Removal": "pruning.prune",
    "Scheme": "core.scheme",
    "Sensitivity": "core.table",
    "Settings": "pipeline.settings",
    "TargetMismatch": "core.errors",
    "Task": "core.task",
    "Training": "training.loop",
    "UnsupportedModel": "core.errors",
    "auto_quantize": "pipeline.auto",
    "capture": "graph.capture",
    "equalized": "quantization.equalize",
    "export": "targets.export",
    "finetune": "training.finetune",
    "front": "searches.front",
    "learnable": "training.learnable",
    "measure": "metrics.measure",
    "prune_channels": "pruning.prune",
    "quantize": "roundings.quantize",
    "reestimated": "quantization.batchnorm",
    "search": "searches.search",
    "settled": "training.learnable",
    "study": "metric_study.study",
    "uniform_plan": "quantization.offers",
    "verify": "targets.verify",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixbit' has no attribute {name!r}")
    value = getattr(import_module(f"mixbit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
