"""load_model(): the network that MODEL of the command line names, in whatever form it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixbit.core import InvalidInput, form_of, forms_in

if TYPE_CHECKING:
    from torch import nn


_WEIGHTS = (
    "it holds weights without their network, or a pickle, which may run code; write a function that builds the network "
    "and loads its weights, and give file.py:function"
)
_FRAMEWORKS = "write the network as an ONNX file, by tf2onnx say, and give net.onnx"
#: Endings of files that people have and that are no form -> why, and the way out.
_OTHERS: dict[str, str] = dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl"), _WEIGHTS)
_OTHERS |= dict.fromkeys((".h5", ".keras", ".pb", ".tflite"), _FRAMEWORKS)


@dataclass(frozen=True)
class LoadedModel:
    """A network, and what its file tells about it.

    Attributes:
        module: The network.
        task: The task, as `Task.named` reads it; None where the file does not tell.
        folder: Where a processor or tokenizer of the model is, if anywhere.
        classes: Names of the classes in order, where the file tells.
        example: One batch of inputs of the right names, types and shapes, where the file tells: a tensor, a tuple or a
            dict.
        arguments: Name of an input in the file -> that of the module's argument, where Python allows no such name.
        causal: Whether it is a language model whose every output foretells the next token.
        weights: Where the numbers of the network's parameters are, which are on `meta`; None where they are loaded.
    """

    module: "nn.Module"
    task: str | None = None
    folder: Path | None = None
    classes: tuple[str, ...] | None = None
    example: Any = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    causal: bool = False
    weights: Path | None = None


@dataclass(frozen=True)
class ModelForm:
    """A form of MODEL.

    Attributes:
        words: An example, for help and messages: `net.onnx`.
        takes: Whether a text is of this form; it loads nothing heavy.
        load: The network that the text names; raises InvalidInput where it cannot be loaded.
        on_meta: The same with parameters on `meta`, their numbers being left in files; None where the form cannot.
    """

    words: str
    takes: Callable[[str], bool]
    load: Callable[[str], LoadedModel]
    on_meta: Callable[[str], LoadedModel] | None = None


def load_model(spec: str, *, on_meta: bool = False) -> LoadedModel:
    """The network that MODEL names, with its weights left in their files where `on_meta` says so.

    Raises:
        InvalidInput: MODEL is of no known form, or cannot be loaded, or so.
    """
    form = form_of_model(spec)
    if not on_meta:
        return form.load(spec)
    if form.on_meta is None:
        forms: list[ModelForm] = forms_in("mixbit.models", last="python")
        able = " or ".join(each.words for each in forms if each.on_meta is not None)
        raise InvalidInput(f"MODEL {spec}: its weights cannot stay in files, as --memory wants; give {able}")
    return form.on_meta(spec)


def form_of_model(spec: str) -> ModelForm:
    """The form of MODEL; raises InvalidInput where it is of none that is known."""
    ending = Path(spec).suffix
    if Path(spec).is_file() and (way_out := _OTHERS.get(ending)) is not None:
        raise InvalidInput(f"MODEL {spec}: a file that ends with {ending} is not read: {way_out}")
    forms: list[ModelForm] = forms_in("mixbit.models", last="python")
    return form_of("MODEL", spec, forms)
