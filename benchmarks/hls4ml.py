"""The demo's network with weights of 3 and 5 bits, as hls4ml's C++ computes it: the largest difference from qonnx.

hls4ml multiplies exactly where scales are powers of two, one for each weight; elsewhere it computes with scales in
fixed point. So all scales are rounded to these. Activations take 3, 5 and 8 bits. Inputs are whole multiples of the
input's scale, as hls4ml truncates others before it rounds them. It needs g++, qonnx and hls4ml:

    pip install '.[qonnx]' hls4ml
    python -m benchmarks.hls4ml
"""

import argparse
import contextlib
import io
import math
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hls4ml
import numpy as np
import torch
from numpy.typing import NDArray
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.util.cleanup import cleanup_model

import mixbit as mb
from mixbit.core import Format, Plan, Scheme, find_target
from mixbit.demo.data import calibration_batches, test_batches
from mixbit.demo.network import trained
from mixbit.graph import Graph, model_fingerprint
from mixbit.quantization import calibrate
from mixbit.quantization.quantizer import activation_quantizers
from mixbit.quantization.ranges import Histogram, mse
from mixbit.quantization.scales import choose_scales

#: End of a layer's name -> its scheme; of the others, some of which read one tensor, the last.
SCHEMES = {"conv.weight": "w5ta8", "conv2.weight": "w5ta3", "": "w3ta5"}
#: Of everything that has no Quant node: biases and sums.
PRECISION = "fixed<32,16>"


def power_of_two(histogram: Histogram, fmt: Format) -> tuple[float, int]:
    """The range of least square error, its scale rounded to a power of two."""
    scale, zero_point = mse(histogram, fmt)
    return 2.0 ** round(math.log2(scale)), zero_point


def quantized() -> Graph:
    """The demo's network, with scales that are powers of two."""
    batches = [images for images, _ in calibration_batches()]
    graph = mb.capture(trained(), batches[0])
    calibration = calibrate(graph, batches, target="qonnx", ranges=power_of_two)
    schemes = {}
    for layer in graph.layers:
        schemes[layer.name] = next(scheme for end, scheme in SCHEMES.items() if layer.name.endswith(end))
        fmt = Scheme.parse(schemes[layer.name]).weight
        if fmt is not None:
            choose_scales(graph, layer, [fmt], calibration)
            scale, zero_point = calibration.weight_factors[layer.name, fmt, False]
            calibration.weight_factors[layer.name, fmt, False] = scale.log2().round().exp2(), zero_point
    plan = Plan(target="qonnx", fingerprint=model_fingerprint(graph.layers), layers=schemes, made_by="3 and 5 bits")
    print(schemes)
    return mb.quantize(graph, plan, calibration)


def designed(file: Path, folder: Path) -> Any:
    """What hls4ml makes of the file, compiled by g++."""
    model = cleanup_model(ModelWrapper(str(file)))
    model = cleanup_model(model.transform(ConvertToChannelsLastAndClean()))
    config = hls4ml.utils.config_from_onnx_model(model, granularity="name", default_precision=PRECISION)
    design = hls4ml.converters.convert_from_onnx_model(
        model, hls_config=config, output_dir=str(folder), backend="Vitis", io_type="io_parallel"
    )
    design.compile()
    return design


def images_on_grid(simulated: Graph, count: int) -> NDArray[np.float32]:
    """Test images, rounded as the network's first quantizer does."""
    quantizer = activation_quantizers(simulated)["images"]
    images = torch.cat([images for images, _ in test_batches()])[:count]
    with torch.no_grad():
        return quantizer(images).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="how many test images to compare (64)")
    count = parser.parse_args().images
    warnings.simplefilter("ignore")  # of hls4ml and qonnx
    simulated = quantized()
    images = images_on_grid(simulated, count)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mb.export(simulated, folder / "out")
        (wanted,) = find_target("qonnx").load(folder / "out").run([images])
        with contextlib.redirect_stdout(io.StringIO()):
            design = designed(folder / "out" / "model.onnx", folder / "design")
        made = design.predict(np.ascontiguousarray(images)).reshape(wanted.shape)
    print(f"{count} images: largest difference {abs(made - wanted).max():g}, largest output {abs(wanted).max():g}")


if __name__ == "__main__":
    main()
