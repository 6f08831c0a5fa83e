"""mixbit: how many bits every weight and every activation of a trained network deserves.

Names load on first use, so that `import mixbit` and the command line start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixbit.batchnorm import reestimated
    from mixbit.budget import Budget, MaxDrop
    from mixbit.equalize import equalized
    from mixbit.errors import InfeasibleBudget, InvalidInput, MixbitError, TargetMismatch, UnsupportedModel
    from mixbit.estimate import Estimate
    from mixbit.fitting import uniform_plan
    from mixbit.graph import Graph, capture
    from mixbit.layers import find_layers
    from mixbit.measurement import measure
    from mixbit.pipeline import auto_quantize
    from mixbit.plan import Plan
    from mixbit.pruning.prune import Removal, prune_channels
    from mixbit.quantization import quantize
    from mixbit.scheme import Scheme
    from mixbit.search import front, search
    from mixbit.sensitivity import Sensitivity
    from mixbit.settings import Settings
    from mixbit.studies import RandomPlans, Subject, study
    from mixbit.targets import export
    from mixbit.task import Task
    from mixbit.training.finetune import finetune
    from mixbit.training.learning import learnable, settled
    from mixbit.training.loop import Training
    from mixbit.verification import verify

__all__ = [
    "Budget",
    "Estimate",
    "Graph",
    "InfeasibleBudget",
    "InvalidInput",
    "MaxDrop",
    "MixbitError",
    "Plan",
    "RandomPlans",
    "Removal",
    "Scheme",
    "Sensitivity",
    "Settings",
    "Subject",
    "TargetMismatch",
    "Task",
    "Training",
    "UnsupportedModel",
    "auto_quantize",
    "capture",
    "equalized",
    "export",
    "find_layers",
    "finetune",
    "front",
    "learnable",
    "measure",
    "prune_channels",
    "quantize",
    "reestimated",
    "search",
    "settled",
    "study",
    "uniform_plan",
    "verify",
]

# No module has the name of a public function, since importing it would put it in the function's place; but
# `mixbit.search` is both the folder and the function: see the end of its `__init__.py`.
_HOMES = {
    "Budget": "budget",
    "Estimate": "estimate",
    "Graph": "graph",
    "InfeasibleBudget": "errors",
    "InvalidInput": "errors",
    "MaxDrop": "budget",
    "MixbitError": "errors",
    "Plan": "plan",
    "RandomPlans": "studies",
    "Removal": "pruning.prune",
    "Scheme": "scheme",
    "Sensitivity": "sensitivity",
    "Settings": "settings",
    "Subject": "studies",
    "TargetMismatch": "errors",
    "Task": "task",
    "Training": "training.loop",
    "UnsupportedModel": "errors",
    "auto_quantize": "pipeline",
    "capture": "graph",
    "equalized": "equalize",
    "front": "search",
    "export": "targets",
    "find_layers": "layers",
    "finetune": "training.finetune",
    "learnable": "training.learning",
    "measure": "measurement",
    "prune_channels": "pruning.prune",
    "quantize": "quantization",
    "reestimated": "batchnorm",
    "search": "search",
    "settled": "training.learning",
    "study": "studies",
    "uniform_plan": "fitting",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixbit' has no attribute {name!r}")
    module = import_module(f"mixbit.{_HOMES[name]}")
    value = module if name == _HOMES[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
