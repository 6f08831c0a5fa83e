"""mixbit chooses how many bits each weight and each activation of a trained network needs, and proves the result.

Names load on first use, so that `import mixbit` and the command line start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixbit.core import Budget, Engine, MixbitError, Plan, Sensitivity, Task
    from mixbit.graph.capture import capture
    from mixbit.metric_study.study import study
    from mixbit.metrics.measure import measure
    from mixbit.pipeline.auto import auto_quantize
    from mixbit.pruning.prune import prune_channels
    from mixbit.roundings.quantize import quantize
    from mixbit.searches.front import front
    from mixbit.searches.search import search
    from mixbit.targets.export import export
    from mixbit.targets.verify import verify
    from mixbit.training.finetune import finetune

__all__ = [
    "Budget",
    "Engine",
    "MixbitError",
    "Plan",
    "Sensitivity",
    "Task",
    "auto_quantize",
    "capture",
    "export",
    "finetune",
    "front",
    "measure",
    "prune_channels",
    "quantize",
    "search",
    "study",
    "verify",
]

#: Name -> its module, for those that are not in `core`.
_HOMES = {
    "Task": "core.task",
    "auto_quantize": "pipeline.auto",
    "capture": "graph.capture",
    "export": "targets.export",
    "finetune": "training.finetune",
    "front": "searches.front",
    "measure": "metrics.measure",
    "prune_channels": "pruning.prune",
    "quantize": "roundings.quantize",
    "search": "searches.search",
    "study": "metric_study.study",
    "verify": "targets.verify",
}
#: Names that stood here before -> what to write instead.
_MOVED = {
    "Estimate": "mixbit.metrics.Estimate",
    "Graph": "mixbit.graph.Graph",
    "InfeasibleBudget": "mixbit.core.errors.InfeasibleBudget",
    "InvalidInput": "mixbit.core.errors.InvalidInput",
    "MaxDrop": "mixbit.Budget(max_drop=...)",
    "RandomPlans": "keyword arguments of mixbit.study",
    "Removal": "what mixbit.prune_channels returns beside the graph",
    "Scheme": "mixbit.core.Scheme",
    "Settings": "mixbit.pipeline.Settings",
    "Subject": "the tuple (graph, calibration_batches, evaluation_batches) for mixbit.study",
    "TargetMismatch": "mixbit.core.errors.TargetMismatch",
    "Training": "mixbit.training.Training",
    "UnsupportedModel": "mixbit.core.errors.UnsupportedModel",
    "equalized": "mixbit.quantization.equalized",
    "find_layers": "graph.layers, of what mixbit.capture returns",
    "learnable": "mixbit.training.learnable",
    "reestimated": "mixbit.quantization.reestimated",
    "settled": "mixbit.training.settled",
    "uniform_plan": "mixbit.quantization.uniform_plan",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        raise AttributeError(f"mixbit.{name} has moved: {_MOVED[name]}")
    if name not in __all__:
        raise AttributeError(f"module 'mixbit' has no attribute {name!r}")
    value = getattr(import_module(f"mixbit.{_HOMES.get(name, 'core')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
