"""MODEL as a function of the user's own: `file.py:function` or `package.module:function`."""

from torch import nn

from mixbit.core import InvalidInput, call_function, names_function
from mixbit.models.load import LoadedModel, ModelForm


def _load(spec: str) -> LoadedModel:
    """What the function returns, which must be a module; raises InvalidInput otherwise."""
    model = call_function(spec, "MODEL")
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"MODEL {spec}: returns a {type(model).__name__}, not an nn.Module")
    return LoadedModel(model)


FORM = ModelForm("file.py:function or package.module:function", names_function, _load)
