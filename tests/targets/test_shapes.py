"""Artefacts take every shape that the graph does: one sample, odd batches, and sizes that are free."""

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.core.target import find_target
from mixbit.core.task import Task
from mixbit.graph.capture import capture_all
from mixbit.graph.evaluate import Reference, evaluate
from mixbit.roundings.quantize import quantize
from mixbit.targets.verify import problems_of_sizes, simulated_at_sizes
from tests.graph.test_dynamic import Picture, Text, pictures, texts
from tests.networks import FOR_ANY_NETWORK, Net, plan_of

CASES = {
    "text": (Text, [texts(8, length) for length in (6, 9, 6)], [texts(1, 9, 3), texts(3, 4, 3), texts(2, 16, 3)]),
    "picture": (Picture, [pictures(8, 8), pictures(8, 11)], [pictures(1, 8), pictures(3, 15), pictures(2, 6)]),
}


#: What targets cannot write yet, and say so.
REFUSED = {
    ("litert", "text"): "slice_1: target litert cannot write this form of aten.slice.Tensor",
    ("litert", "picture"): "avg_pool2d: target litert cannot write this form of aten.avg_pool2d.default",
    **{("ethosu", name): "inputs of several sizes: an NPU's file has one" for name in CASES},
    **{("executorch", name): "inputs of several sizes: a file of target executorch" for name in CASES},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", FOR_ANY_NETWORK)
def test_an_artefact_runs_as_simulated_at_every_size(target, name, tmp_path):
    one = find_target(target)
    try:
        one.require()
    except InvalidInput as error:
        pytest.skip(str(error))
    make, batches, others = CASES[name]
    torch.manual_seed(0)
    graph = capture_all(make().eval(), [Inputs.of(batch) for batch in batches])
    simulated = quantize(graph, plan_of(graph.layers, "w4a8", target), [Inputs.of(batch) for batch in batches])
    if (target, name) in REFUSED:
        with pytest.raises(UnsupportedModel, match=REFUSED[target, name]):
            one.write(simulated, tmp_path)
        return
    one.write(simulated, tmp_path)
    runner = one.load(tmp_path, graph)
    for other in others:
        inputs = Inputs.of(other)
        with torch.no_grad():
            wanted = inputs.call(simulated)
        (got,) = runner.run([leaf.numpy() for leaf in graph.tensors(inputs)])
        assert got.shape == wanted.shape
        assert np.sqrt(np.mean((got - wanted.numpy()) ** 2)) < 0.03 * float(wanted.std())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda shape: shape[0] == 1, "on one sample alone outputs differ by"),
        (lambda shape: shape[0] == 3, "on three samples alone outputs differ by"),
        (lambda shape: shape[2] == 6, "on shorter samples alone outputs differ by"),
        (lambda shape: False, None),
    ],
)
def test_a_runtime_that_is_wrong_at_one_size_is_found(wrong, message):
    graph = capture_all(Picture().eval(), [Inputs.of(pictures(8, 8))], {"x": [2]})
    batch, task = Inputs.of(pictures(8, 8)), Task.classification()
    reference = Reference.recorded(graph, task)
    deployed = evaluate(reference, [(batch, None)], task, "simulate", differing_from=reference)

    def run(inputs):
        output = inputs.call(graph)
        return output.flip(1) if wrong(inputs.args[0].shape) else output

    problems = problems_of_sizes(run, simulated_at_sizes(graph, batch, task), deployed)
    assert len(problems) == (message is not None)
    if message is not None:
        assert problems[0].startswith(message)


def test_a_length_that_the_network_does_not_take_is_left_out():
    net = Net(lambda net, x: net.a(x.unflatten(1, (-1, 4)).mean(2)).mean(1), a=nn.Linear(5, 3))
    graph = capture_all(net, [Inputs.of(torch.randn(6, 8, 5)), Inputs.of(torch.randn(6, 12, 5))])
    sizes = simulated_at_sizes(graph, Inputs.of(torch.randn(6, 8, 5)), Task.classification())
    assert list(sizes) == ["one sample", "three samples"]
    assert sizes["three samples"][0].batch_size == 3
