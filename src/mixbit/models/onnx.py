"""net.onnx: an ONNX file of any framework, made into a module operator by operator.

onnxruntime runs the file first, and the module must return the same. Parameters have the names of the file, where these
say something. Converters on the package index do not do: what onnx2fx 0.0.1 makes has no parameters and no names, holds
shapes in tensors, so that torch.export stops at every Reshape, and its LSTMs fail; onnx2torch2 2.2.0 does not import
without torchvision, numbers the names, and holds shapes in tensors too.
"""

from pathlib import Path

from mixbit.core import InvalidInput
from mixbit.models._onnx_check import Runtime, check, drawn, tried
from mixbit.models._onnx_file import needed, read
from mixbit.models._onnx_graph import module_of
from mixbit.models._onnx_problems import check as check_operators
from mixbit.models.load import LoadedModel, ModelForm

#: Files beside a model that say how inputs are prepared.
_PROCESSORS = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def load(spec: str) -> LoadedModel:
    """The file as a module that returns a dict of its outputs by name.

    Raises:
        InvalidInput: the file, or data beside it, cannot be read; onnxruntime does not run it.
        UnsupportedModel: operators that cannot be followed, all of them; or outputs that differ from onnxruntime's.
    """
    path = Path(spec)
    for module in ("onnx", "onnxruntime"):
        needed(module)
    file = read(path)
    if not file.inputs:
        raise InvalidInput(f"MODEL {path}: takes no input; give a file of a network")
    check_operators(file)
    runtime = Runtime(file)
    found = tried(file, runtime)
    examples = [found.inputs]
    if not found.any_batch:
        examples.append(drawn(file.inputs, 2 * found.samples, found.free))
    module = module_of(file, examples)
    check(file, runtime, module, found)
    is_fixed = all(isinstance(size, int) for port in file.inputs for size in port.sizes[1:])
    folder = path.parent if any((path.parent / name).is_file() for name in _PROCESSORS) else None
    placeholders = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    arguments = dict(zip(found.inputs, placeholders, strict=True))
    return LoadedModel(
        module.eval(),
        folder=folder,
        example={arguments[name]: value for name, value in found.inputs.items()} if is_fixed else None,
        arguments={name: argument for name, argument in arguments.items() if name != argument},
    )


FORM = ModelForm("net.onnx", lambda spec: spec.endswith(".onnx"), load)
