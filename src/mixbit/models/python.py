"""MODEL as a function of the user's own: `file.py:function` or `package.module:function`."""

from pathlib import Path

from torch import nn

from mixbit.core import InvalidInput, call_function, names_function
from mixbit.models.load import LoadedModel, ModelForm


def _load(spec: str) -> LoadedModel:
    """What the function returns, which must be a module; raises InvalidInput otherwise."""
    model = call_function(spec, "MODEL")
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"MODEL {spec}: returns a {type(model).__name__}, not an nn.Module")
    return LoadedModel(model)


def _on_meta(spec: str) -> LoadedModel:
    """What the function returns: a module on `meta`, and the path of its weights; raises InvalidInput otherwise."""
    pair = call_function(spec, "MODEL")
    model, weights = pair if isinstance(pair, tuple) and len(pair) == 2 else (pair, None)
    if not isinstance(model, nn.Module) or not isinstance(weights, str | Path):
        raise InvalidInput(
            f"MODEL {spec}: with --memory it returns a module made inside mixbit.graph.parameters_on_meta(), and the "
            "path of its safetensors"
        )
    return LoadedModel(model, weights=Path(weights))


FORM = ModelForm("file.py:function or package.module:function", names_function, _load, _on_meta)
