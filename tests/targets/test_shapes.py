"""Artefacts take every shape that the graph does: one sample, odd batches, and sizes that are free."""

import numpy as np
import pytest
import torch

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.target import TARGETS, find_target
from mixbit.graph.capture import capture_all
from mixbit.roundings.quantize import quantize
from tests.graph.test_dynamic import Picture, Text, pictures, texts
from tests.networks import plan_of

CASES = {
    "text": (Text, [texts(8, length) for length in (6, 9, 6)], [texts(1, 9, 3), texts(3, 4, 3), texts(2, 16, 3)]),
    "picture": (Picture, [pictures(8, 8), pictures(8, 11)], [pictures(1, 8), pictures(3, 15), pictures(2, 6)]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", TARGETS)
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
    one.write(simulated, tmp_path)
    runner = one.load(tmp_path, graph)
    for other in others:
        inputs = Inputs.of(other)
        with torch.no_grad():
            wanted = inputs.call(simulated)
        (got,) = runner.run([leaf.numpy() for leaf in graph.tensors(inputs)])
        assert got.shape == wanted.shape
        assert np.sqrt(np.mean((got - wanted.numpy()) ** 2)) < 0.03 * float(wanted.std())
