"""NVIDIA's ModelOpt: `auto_quantize`, each layer of 2, 3, 4, 6 or 8 bits within its `effective_bits`.

`auto` scores formats by gradients, its default; `kl` by the divergence of outputs. Scales of weights are those of the
largest number in each channel, as in its INT8_DEFAULT_CFG; labels are the float network's own answers where the data
has none.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.contest_tools._tool import Job, Method, Quantized, Stored

REQUIREMENTS = ("nvidia-modelopt==0.47.0",)
METHODS = {"auto": Method((8, 6, 4, 3, 2.5)), "kl": Method((6, 4, 3, 2.5))}
WIDTHS = (2, 3, 4, 6, 8)


def quantize(job: Job, method: str) -> Quantized:
    """The network with ModelOpt's simulation of quantized weights and activations."""
    from modelopt.torch import quantization

    formats = [_format(bits) for bits in WIDTHS if job.mean_bits < 8 or bits == 8]
    batches = list(zip(job.inputs, job.labels, strict=True))
    if job.mean_bits >= 8:
        small = quantization.quantize(job.model, formats[0], lambda model: [model(batch) for batch in job.inputs])
    else:
        small, _ = quantization.auto_quantize(
            job.model,
            {"effective_bits": job.mean_bits},
            module_search_spaces=[
                {"module_name_patterns": ["*"], "quantization_formats": formats, "allow_no_quant": False}
            ],
            data_loader=batches,
            forward_step=lambda model, batch: model(batch[0]),
            loss_func=_loss(job.task) if method == "auto" else None,
            num_calib_steps=len(batches),
            num_score_steps=len(batches),
            method="gradient" if method == "auto" else "kl_div",
        )
    return Quantized(small.eval(), list(_weights(small)))


def _format(bits: int) -> dict:
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
        ],
        "algorithm": "max",
    }


def _loss(task: str) -> Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]:
    def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        if task == "multilabel":
            return functional.binary_cross_entropy_with_logits(output, batch[1].to(output.dtype))
        return functional.cross_entropy(output, batch[1])

    return loss


def _weights(model: nn.Module) -> Iterator[Stored]:
    for module in model.modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None and quantizer.is_enabled:
            yield Stored(module.weight.numel(), quantizer.num_bits, torch.as_tensor(quantizer.amax).numel())
