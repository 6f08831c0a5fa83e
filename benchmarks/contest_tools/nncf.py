"""NNCF of OpenVINO: 8 bits after training, and weights of language models in 3, 4 and 8 bits.

`default` is `nncf.quantize` as it comes; `bias_correction` with `fast_bias_correction=False`, which its documentation
recommends for more accuracy. The network runs in OpenVINO, in float32 where it is not in integers.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contest_tools._tool import Job, Method, Quantized, Stored

REQUIREMENTS = ("nncf==3.4.0", "openvino==2026.4.1")
METHODS = {
    "default": Method((8,)),
    "bias_correction": Method((8,)),
    "compress_weights": Method((8, 4.5, 4, 3), weights_only=True),
    "compress_weights_gptq": Method((4.5, 4, 3), weights_only=True),
}
GROUP = 64


def quantize(job: Job, method: str) -> Quantized:
    """The network converted by OpenVINO, quantized and compiled."""
    import nncf
    import openvino

    model = openvino.convert_model(job.model, example_input=job.inputs[0])
    if METHODS[method].weights_only:
        small = _compressed(job, model, gptq=method.endswith("gptq"))
    else:
        samples = nncf.Dataset([row.numpy() for batch in job.inputs for row in batch.split(1)])
        count = sum(len(batch) for batch in job.inputs)
        fast = method != "bias_correction"
        small = nncf.quantize(model, samples, subset_size=count, fast_bias_correction=fast)
    exact = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(small, "CPU", exact)

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(np.array(compiled(batch.numpy())[0]))

    return Quantized(run, list(_weights(small)))


def _compressed(job: Job, model: Any, *, gptq: bool) -> Any:
    """Weights of 3 or 4 bits in groups, and as many layers in 8 bits as the mean of all widths leaves."""
    import nncf

    if job.mean_bits >= 8:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    modes, narrow = {4: nncf.CompressWeightsMode.INT4_SYM, 3: nncf.CompressWeightsMode.INT3_SYM}, int(job.mean_bits)
    samples = nncf.Dataset([row.numpy() for batch in job.inputs for row in batch.split(1)])
    options: dict[str, Any] = {"gptq": True} if gptq else {"awq": True, "scale_estimation": True}
    return nncf.compress_weights(
        model,
        mode=modes[narrow],
        ratio=(8 - job.mean_bits) / (8 - narrow),
        group_size=GROUP,
        all_layers=True,
        backup_mode=nncf.BackupMode.INT8_SYM,
        dataset=samples,
        **options,
    )


def _weights(model: Any) -> Any:
    """The constants that are stored in integers, or rounded to them when the model is compiled."""
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant":
                scales = math.prod(node.input_value(1).get_shape())
                yield Stored(math.prod(source.get_output_shape(0)), math.log2(node.get_levels() + 1) // 1, scales)
        elif node.get_type_name() == "Multiply":  # weight, converted to float, less its zero point, times its scale
            source, scale = node.input_value(0).get_node(), node.input_value(1)
            while source.get_type_name() in {"Convert", "Subtract"}:
                source = source.input_value(0).get_node()
            bits = source.get_output_element_type(0).bitwidth
            if source.get_type_name() == "Constant" and bits <= 8:
                yield Stored(math.prod(source.get_output_shape(0)), bits, math.prod(scale.get_shape()))
