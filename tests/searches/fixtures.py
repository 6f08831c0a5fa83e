"""Problems from arrays, problems whose answers are known, and small tables made by hand."""

import numpy as np

from mixbit.core import Limit, Sensitivity
from mixbit.searches._problem import Problem

# ResNet-18 on ImageNet as HAWQ-V3 published it: 19 layers in execution order, without the first convolution and the
# last linear layer, each down-sampling convolution after the main branch of its unit; sizes and MACs in millions,
# latencies in milliseconds on a T4.
TRACE = """
    0.06857826 0.03162379 0.03298575 0.01205663 0.02222431 0.00596336 0.06931772 0.00807129 0.00372905 0.00530698
    0.00209011 0.00737569 0.00210454 0.00151197 0.00158041 0.00078146 0.00451841 0.00098745 0.00072944
"""
ERROR_4 = """
    6.743 3.9691 3.3281 2.6796 4.7277 10.5966 0.6827 9.0942 4.8857 10.7599 21.7546 0.8603 14.5324 10.9651 18.7706
    36.4044 3.1572 29.6994 17.4016
"""
ERROR_8 = """
    0.0235 0.0125 0.0102 0.0082 0.0145 0.0344 0.0023 0.0287 0.0148 0.0333 0.0682 0.0027 0.0448 0.0336 0.0576 0.113
    0.0102 0.0947 0.0532
"""
PARAMETERS = """
    0.03515625 0.03515625 0.03515625 0.03515625 0.0703125 0.140625 0.0078125 0.140625 0.140625 0.28125 0.5625
    0.03125 0.5625 0.5625 1.125 2.25 0.125 2.25 2.25
"""
MACS = """
    115.605504 115.605504 115.605504 115.605504 57.802752 115.605504 6.422528 115.605504 115.605504 57.802752
    115.605504 6.422528 115.605504 115.605504 57.802752 115.605504 6.422528 115.605504 115.605504
"""
LATENCY_4 = """
    0.21094404 0.21092674 0.21104113 0.21086851 0.13642465 0.19167506 0.02532183 0.19148203 0.19142914 0.11395316
    0.20556011 0.01917474 0.20566918 0.20566509 0.13185102 0.22287786 0.01790088 0.22304611 0.22286099
"""
LATENCY_8 = """
    0.36189111 0.36211718 0.31141909 0.30454471 0.19184896 0.38948934 0.0334169 0.38904905 0.3892859 0.19134735
    0.34307431 0.02802354 0.34313329 0.34310756 0.21117103 0.37376585 0.02896843 0.37398187 0.37405185
"""
RESNET18_TIES = ((4, 6), (9, 11), (14, 16))

# Resource, share of the way from all 4 bits to all 8 bits, smallest summed loss, bits of the optimum.
RESNET18_OPTIMA = (
    ("size", 0.25, -1.189414, "8888888888888844444"),
    ("size", 0.5, -1.233207, "8888888888888884844"),
    ("size", 0.75, -1.274273, "8888888888888488884"),
    ("bops", 0.25, -0.847289, "8884848444444444444"),
    ("bops", 0.5, -1.092024, "8884888848884444444"),
    ("bops", 0.75, -1.227748, "8888888848888484884"),
    ("latency", 0.25, -0.847289, "8884848444444444444"),
    ("latency", 0.5, -1.105039, "8888848848884484844"),
    ("latency", 0.75, -1.227748, "8888888848888484884"),
)


def resnet18() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Loss [19, 2] of 4 and 8 bits relative to 4 bits, and usage [19, 2] of each resource."""
    trace, error_4, error_8, parameters, macs, latency_4, latency_8 = (
        np.array(text.split(), dtype=float)
        for text in (TRACE, ERROR_4, ERROR_8, PARAMETERS, MACS, LATENCY_4, LATENCY_8)
    )
    loss = np.stack([np.zeros(19), trace * (error_8 - error_4)], axis=1)
    usage = {
        "size": np.stack([0.5 * parameters, parameters], axis=1),
        "bops": np.stack([macs / 64, macs / 16], axis=1),
        "latency": np.stack([latency_4, latency_8], axis=1),
    }
    return loss, usage


def problem_of(loss, usage, limits, **changes: object) -> Problem:
    """A problem from numbers; all weights and inputs have 8 bits, and each layer one weight, unless told otherwise."""
    loss, usage = np.array(loss, dtype=float), np.array(usage, dtype=float)
    num_layers, num_choices = len(loss), loss.shape[-1]
    fields: dict[str, object] = {
        "layers": [f"layer {row}" for row in range(num_layers)],
        "loss": loss,
        "budget": [Limit(f"limit {row}", usage[row], float(bound)) for row, bound in enumerate(limits)],
        "weight_bits": [8] * num_choices,
        "input_bits": [8] * num_choices,
        "numel": np.ones(num_layers),
    }
    fields |= changes
    bits = {name: np.array(fields[name]) for name in ("weight_bits", "input_bits")}
    return Problem(**{**fields, **bits})  # type: ignore[arg-type]


def small_table(**changes: object) -> Sensitivity:
    """Three layers of 100, 200 and 300 weights, 1000 MACs each, with choices w8a8, w4a8 and w4a4."""
    numel = np.array([100.0, 200.0, 300.0])
    bits = np.array([[8, 8], [4, 8], [4, 4]])
    fields: dict[str, object] = {
        "layers": ("first.weight", "second.weight", "last.weight"),
        "choices": ("w8a8", "w4a8", "w4a4"),
        "loss": np.array([[0.01, 0.3, 0.5], [0.01, 0.1, 0.2], [0.01, 0.2, np.inf]]),
        "standard_error": np.array([[0.003, 0.01, 0.01], [0.004, 0.01, 0.01], [0.0, 0.01, np.inf]]),
        "usage": {
            "weight_bytes": np.outer(numel, bits[:, 0] / 8),
            "weight_bits": np.outer(numel, bits[:, 0]),
            "bit_ops": np.outer([1000.0] * 3, bits.prod(axis=1)),
        },
        "numel": numel,
        "macs": np.array([1000.0] * 3),
        "input_ties": (),
        "metric": "fisher",
        "target": "openvino",
        "fingerprint": "0123456789abcdef",
        "num_samples": 64,
        "seed": 0,
    }
    return Sensitivity(**{**fields, **changes})  # type: ignore[arg-type]
