"""A simulated graph whose scales train beside its weights, and the way back to whole numbers."""

import math

import torch

from mixbit.graph.graph import Graph
from mixbit.quantization.biases import make_room_for_biases, settle_biases
from mixbit.quantization.quantizer import quantizers_of


def learnable(graph: Graph) -> Graph:
    """A copy whose scales are parameters: a module for any training loop, in which roundings pass gradients.

    A scale's gradient is multiplied by 1 / sqrt(N high), N the numbers that share the scale (of an activation, those of
    one sample) and high the largest integer of the format: Esser et al. 2020 (LSQ, arXiv:1902.08153), section 2.2. Zero
    points stay as they are, and so do ranges that are taken at run time. Batch norms are folded and dropouts left out,
    as capture did. A graph in float comes back as a plain copy. `settled` ends the training.

    Args:
        graph: A captured or a quantized graph; it is left as it is.
    """
    copied = graph.copy()
    for quantizer in quantizers_of(copied):
        if quantizer.format.floating is None and not quantizer.format.dynamic:
            if quantizer.axis is None:
                numel = math.prod(copied.shapes[quantizer.tensor]) / copied.batch_size
            else:
                numel = copied.parameter(quantizer.tensor).numel()
            sharers = numel / quantizer.scale.numel()
            quantizer.learn_scale(1 / math.sqrt(sharers * quantizer.format.integer_range[1]))
    return copied


@torch.no_grad()
def settled(graph: Graph) -> Graph:
    """A copy that targets can store: scales fixed and positive, biases whole multiples of their steps.

    A bias's step is input scale x weight scale, as in `quantize`; a weight's scale under which a bias would not fit
    into 32 bits is raised. Weights that a sparse format leaves out become 0.

    Args:
        graph: What `learnable` returned, trained; it is left as it is.
    """
    copied = graph.copy()
    for quantizer in quantizers_of(copied):
        quantizer.settle_scale()
        if quantizer.mask is not None:
            copied.parameter(quantizer.tensor).mul_(quantizer.mask)
    make_room_for_biases(copied)
    settle_biases(copied)
    return copied
