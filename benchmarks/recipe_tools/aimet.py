"""AIMET on a small convolutional network: `set_precision` takes the entries of the file, and quantizers have the bits.

aimet-torch imports torchvision, of which nothing is used here. Where it is not installed, empty modules of its names
take its place, so that all that runs is AIMET's own.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from benchmarks.recipe_tools._read import TORCH, Read, levels

REQUIREMENTS = (
    TORCH, "Jinja2", "PyYAML", "bokeh>=3.3,<=3.6.3", "cvxpy", "holoviews", "hvplot", "jsonschema", "matplotlib",
    "networkx", "numpy", "onnx", "onnx_ir", "onnxscript", "osqp", "pandas", "psutil", "pybind11", "safetensors",
    "scikit-learn", "scipy", "tensorboard", "tqdm",
)  # fmt: skip
ALONE = ("aimet-torch==2.42.0",)
FLOAT = "float16"
PLAN = {
    "stem.weight": "w8a8",
    "depthwise.weight": "w8a16",
    "conv.weight": "w4a8",
    "fc1.weight": "w4a4",
    "fc2.weight": "float",
    "fc3.weight": "w4",
    "head.weight": "float16",
}


def apply(recipe: Path) -> dict[str, Read]:
    """Set the precisions of the file, calibrate, and read the quantizers back."""
    _without_torchvision()
    import torch
    from aimet_torch import QuantizationSimModel
    from aimet_torch.mixed_precision import MixedPrecisionConfigurator
    from aimet_torch.quantization.float import FloatQuantizeDequantize
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu1 = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()
            self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.conv, self.relu2, self.flatten = nn.Conv2d(16, 4, 3, padding=1), nn.ReLU(), nn.Flatten()
            self.fc1, self.relu3, self.fc2 = nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)
            self.fc3, self.head = nn.Linear(256, 256), nn.Linear(256, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.relu2(self.conv(self.depthwise(self.relu1(self.stem(x)))))
            return self.head(self.fc3(self.fc2(self.relu3(self.fc1(self.flatten(x))))))

    torch.manual_seed(0)
    model, images = Net().eval(), torch.randn(16, 1, 8, 8)
    sim = QuantizationSimModel(model, images)
    precisions = MixedPrecisionConfigurator(sim)
    for module, precision in json.loads(recipe.read_text()).items():
        precisions.set_precision(sim.model.get_submodule(module), **precision)
    with TemporaryDirectory() as folder:
        precisions.apply(str(Path(folder) / "log.txt"), strict=False)
    sim.compute_encodings(lambda network: network(images))

    def bits(quantizer: Any) -> int | str:
        if isinstance(quantizer, FloatQuantizeDequantize):
            return "float16" if quantizer.is_float16() else str(quantizer)
        return quantizer.bitwidth

    read, traverser = {}, precisions.mp_handler.cg_traverser
    for layer in PLAN:
        module = sim.model.get_submodule(layer.removesuffix(".weight"))
        weight, before = module.param_quantizers["weight"], module
        inputs = module.input_quantizers[0]
        while inputs is None:  # it is the quantizer of what was returned before
            before = traverser.get_valid_parent_module_at_input_idx(before, 0)
            inputs = before.output_quantizers[0] or before.input_quantizers[0]
        read[layer] = Read(bits(weight), bits(inputs), levels(weight(module.weight).detach()))
    return read


def _without_torchvision() -> None:
    """Empty modules in the place of torchvision, with the names that aimet-torch's own modules read on import."""
    if find_spec("torchvision") is not None:
        return
    package = ModuleType("torchvision")
    for name, classes in {"transforms": ("Resize",), "ops": ("RoIPool",), "datasets": ()}.items():
        module = ModuleType(f"torchvision.{name}")
        vars(module).update({each: type(each, (), {}) for each in classes})
        setattr(package, name, module)
        sys.modules[module.__name__] = module
    sys.modules["torchvision"] = package
