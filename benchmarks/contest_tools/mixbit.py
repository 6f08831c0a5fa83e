"""mixbit itself, in the environment that runs the contest: `fisher` and `ilp`, and one rounding.

Uniform w8a8 at 8 bits; below, each layer chooses among 2, 3, 4, 6 and 8 bits. Language models: weights alone, of 2, 3,
4 and 8 bits in groups of 64.
"""

from benchmarks.contest_tools._tool import Job, Method, Quantized, Stored

REQUIREMENTS = ()
BUDGETS = (8, 6, 4, 3, 2.5)
METHODS = {
    **{name: Method(BUDGETS) for name in ("nearest", "gptq", "brecq")},
    **{f"{name}_weights": Method((8, 4.5, 4, 3), weights_only=True) for name in ("nearest", "gptq")},
}
CHOICES = ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8")
WEIGHTS_ONLY = ("w2g64", "w3g64", "w4g64", "w8g64")


def quantize(job: Job, method: str) -> Quantized:
    """The simulation for the target packed, which takes every width."""
    import mixbit as mb
    from mixbit.core.task import Task
    from mixbit.quantization.calibrate import calibrate

    graph, task = mb.capture(job.model, job.inputs[0]), Task.named(job.task)
    calibration = calibrate(graph, list(zip(job.inputs, job.labels, strict=True)))
    choices = WEIGHTS_ONLY if METHODS[method].weights_only else CHOICES
    if job.mean_bits >= 8:
        choices = choices[-1:]
    table = mb.measure(graph, calibration, target="packed", task=task, choices=choices)
    plan = mb.search(table, mb.Budget(mean_bits=job.mean_bits))
    small = mb.quantize(graph, plan, calibration, rounding=method.removesuffix("_weights"), task=task)
    weights = []
    for layer in graph.layers:
        fmt = plan.scheme(layer.name).weight
        if fmt is not None:
            scales = layer.shape[layer.axis] if fmt.group is None else layer.numel // fmt.group
            weights.append(Stored(layer.numel, fmt.bits, scales))
    return Quantized(small, weights)
