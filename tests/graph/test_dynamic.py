"""Dimensions of any size beside the batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.core.batches import Inputs, differing
from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.core.task import Task
from mixbit.graph.capture import capture, capture_all
from mixbit.metrics.measure import measure
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.scales import _judge
from tests.networks import Net


class Text(nn.Module):
    """Positions, attention with a mask of padding, and a product over the rows of all samples."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 12), nn.Parameter(torch.randn(16, 12) / 5)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.matrix, self.bias = nn.Parameter(torch.randn(12, 12) / 3), nn.Parameter(torch.zeros(12))
        self.head = nn.Linear(12, 5)

    def forward(self, ids, mask):
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = torch.addmm(self.bias, x.view(-1, 12), self.matrix).view(x.shape)
        return self.head(torch.tanh(x))


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, 2, 1, groups=2), nn.Linear(6, 4)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.a(x)), 3, 1, 1)
        return self.head(F.relu(self.b(x)).mean((2, 3)))


def texts(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    ids = torch.randint(0, 20, (count, length), generator=generator)
    return {"ids": ids, "mask": (torch.arange(length) < lengths).long()}


def pictures(count, height, width=8, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


FREE = {"ids": [1], "mask": [1]}


def test_a_graph_takes_every_length():
    torch.manual_seed(0)
    model = Text().eval()
    graph = capture(model, texts(4, 8), FREE)
    for count, length in ((1, 8), (3, 2), (2, 1), (5, 16)):
        call = texts(count, length)
        torch.testing.assert_close(graph(**call), model(**call))
        graph.check(Inputs.of(call), "batch")
    assert graph.dynamic == ((1,), (1,))
    with pytest.raises(InvalidInput, match=r"only dimensions 0, 1 may differ"):
        graph.check(Inputs.of({name: value[..., None] for name, value in texts(2, 3).items()}), "batch")


def test_a_graph_takes_every_height():
    model = Picture().eval()
    graph = capture(model, pictures(2, 8), {0: [2]})
    x = pictures(3, 11)
    torch.testing.assert_close(graph(x), model(x))
    with pytest.raises(InvalidInput, match=r"only dimensions 0, 2 may differ, unless `dynamic`"):
        graph.check(Inputs.of(pictures(3, 8, 9)), "batch")


def test_dimensions_in_which_batches_differ_are_found():
    batches = [Inputs.of(texts(4, length)) for length in (1, 5, 7)]
    assert differing(batches) == {"ids": (1,), "mask": (1,)}
    graph = capture_all(Text(), batches)
    assert graph.dynamic == ((1,), (1,))
    assert graph.shapes["ids"] == (4, 5)  # torch takes a length of one for a constant
    assert capture_all(Text(), batches[:1]).dynamic == ()
    wide = capture_all(Picture(), [Inputs.of(pictures(2, height)) for height in (8, 10)], {"x": [3]})
    assert wide.dynamic == ((2, 3),)


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"nothing": [1]}, "no input 'nothing'; there are ids, mask"),
        ({5: [1]}, "no input 5"),
        ({"ids": [2]}, r"input ids \(4, 8\) has no dimension 2"),
        ({"ids": [0]}, "no dimension 0 behind that of samples"),
    ],
)
def test_what_is_not_there_cannot_be_dynamic(dynamic, message):
    with pytest.raises(InvalidInput, match=message):
        capture(Text(), texts(4, 8), dynamic)


def test_the_way_out_names_the_dimension_and_those_that_go_with_it():
    with pytest.raises(UnsupportedModel, match=r"(?s)dimension ids:1 is to be free, .* fixes it at 8.*mask:1"):
        capture(Text(), texts(4, 8), {"ids": [1]})


@pytest.mark.parametrize(
    "metric", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("fisher", "fit")), "output_error"]
)
def test_a_table_is_the_same_whether_lengths_are_free_or_not(metric):
    torch.manual_seed(0)
    model = Text().double().eval()
    batches = [texts(6, 8, seed) for seed in range(3)]
    tables = []
    for dynamic in (None, FREE):
        graph = capture(model, batches[0], dynamic)
        labels = torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(0))
        calibration = calibrate(graph, [{**batch, "labels": labels} for batch in batches])
        tables.append(measure(graph, calibration, target="packed", task=Task.language(), metric=metric).loss)
    torch.testing.assert_close(torch.from_numpy(tables[1]), torch.from_numpy(tables[0]), rtol=1e-9, atol=1e-15)


def test_samples_of_two_shapes_count_by_their_positions():
    """A scale's error is the mean over the outputs of all samples, whatever their sizes."""
    torch.manual_seed(0)
    graph = capture(Picture().double().eval(), pictures(2, 8).double(), {0: [2]})
    batches = [pictures(3, height, seed=height).double() for height in (8, 11)]
    calibration = calibrate(graph, batches)
    layer, operation = graph.operations["conv2d"]
    errors = torch.randn(2, *layer.shape, dtype=torch.float64)
    outputs = [[graph.run(operation, x, error).movedim(1, 0).flatten(1) for x in batches] for error in errors]
    wanted = [torch.cat(each, 1).var(1, unbiased=False) for each in outputs]
    found = _judge(graph, layer, operation, calibration)(errors.flatten(2)).squeeze(2)
    torch.testing.assert_close(found, torch.stack(wanted))


def test_texts_of_several_lengths_measure():
    model = Net(lambda net, x: net.b(torch.relu(net.a(x))).mean(1), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    batches = [torch.randn(4, length, 6) for length in (5, 3, 9)]
    graph = capture_all(model, [Inputs.of(batch) for batch in batches])
    table = measure(graph, calibrate(graph, batches), target="packed", metric="fisher")
    assert torch.isfinite(torch.from_numpy(table.loss)).all()
