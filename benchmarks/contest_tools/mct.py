"""Sony's Model Compression Toolkit, for its default target (IMX500): 8 bits, or each layer of 2, 4 or 8 bits.

`ptq` is mixed precision by its `ResourceUtilization` of weights, with the default `CoreConfig`; `gradient_ptq` learns
roundings after that, for 20 passes over the data.
"""

import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType

from torch import Tensor, nn

from benchmarks.contest_tools._tool import Job, Method, Quantized, Stored

REQUIREMENTS = ("model-compression-toolkit==2.6.1",)
METHODS = {"ptq": Method((8, 6, 4, 3, 2.5)), "gradient_ptq": Method((8, 6, 4, 3, 2.5))}
EPOCHS = 20


def quantize(job: Job, method: str) -> Quantized:
    """The network with MCT's simulation of quantized weights and activations."""
    _import_operators()
    import model_compression_toolkit as mct

    def data() -> Iterator[list[Tensor]]:
        return ([batch] for batch in job.inputs)

    limit = mct.core.ResourceUtilization(weights_memory=job.num_weights * job.mean_bits / 8)
    run = partial(mct.ptq.pytorch_post_training_quantization, job.model)
    if method == "gradient_ptq":
        learning = mct.gptq.get_pytorch_gptq_config(n_epochs=EPOCHS)
        run = partial(mct.gptq.pytorch_gradient_post_training_quantization, job.model, gptq_config=learning)
    small, _ = run(
        representative_data_gen=data,
        target_resource_utilization=limit if job.mean_bits < 8 else None,
    )
    return Quantized(small.eval(), list(_weights(small)))


def _import_operators() -> None:
    """Import MCT's own operators without torchvision, which only those of detection networks call."""
    sys.modules["torchvision"] = ModuleType("torchvision")
    sys.modules["torchvision"].__version__ = "0.21.0"
    import edgemdt_cl.pytorch  # noqa: F401

    del sys.modules["torchvision"]


def _weights(model: nn.Module) -> Iterator[Stored]:
    """The kernels, which MCT wraps together with their quantizers."""
    for module in model.modules():
        for name, quantizer in getattr(module, "weights_quantizers", {}).items():
            weight = getattr(module, f"quantized_{name}", None)
            if weight is None:
                weight = getattr(module, name)
            yield Stored(weight.numel(), quantizer.num_bits, len(quantizer.threshold_np))
