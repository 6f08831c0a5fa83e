"""What capture makes of models as people write them: any arguments, any containers, attention of any rank."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from mixbit.core.batches import Inputs, split_batches
from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.graph.capture import capture
from mixbit.graph.forms import attend
from tests.networks import Net


class Anything(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, *args, **kwargs):
        return self.a(*args) if args else self.a(kwargs["x"]) * kwargs.get("scale", 1)


@pytest.mark.parametrize("example", [torch.randn(4, 6), {"x": torch.randn(4, 6), "scale": torch.rand(4, 1)}])
def test_arguments_that_the_signature_does_not_name(example):
    model = Anything()
    graph = capture(model, example)
    call = Inputs.of(example).rows(slice(3))
    torch.testing.assert_close(graph(*call.args, **call.kwargs), model(*call.args, **call.kwargs))
    assert "forward" not in vars(model)
    assert [layer.name for layer in graph.layers] == ["a.weight"]


@dataclass
class Both(OrderedDict):
    """A dataclass that is a dict too, as libraries of language models have it."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self):
        self.update({name: value for name, value in vars(self).items() if value is not None})


@dataclass
class Inner:
    states: list[torch.Tensor]
    nothing: None = None


class Pair(tuple):
    __slots__ = ()


RETURNED = {
    "dataclass": (lambda y: Inner([y, y + 1]), lambda out: out.states),
    "dict too": (lambda y: Both(logits=y, hidden=(y + 1, y * 2)), lambda out: [out["logits"], *out.hidden]),
    "nested": (lambda y: {"inner": Inner([y]), "rest": (None, Pair([y - 1]))}, pytree.tree_leaves),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_what_a_model_returns_in_containers_of_its_own(kind):
    make, leaves = RETURNED[kind]
    net = Net(lambda net, x: make(net.a(x)), a=nn.Linear(6, 3))
    graph = capture(net, torch.randn(4, 6))
    x = torch.randn(2, 6)
    values = [value for value in leaves(graph(x)) if value is not None]
    y = net.a(x)
    expected = {"dataclass": [y, y + 1], "dict too": [y, y + 1, y * 2], "nested": [y, y - 1]}[kind]
    assert len(values) == len(expected)
    for got, want in zip(values, expected, strict=True):
        torch.testing.assert_close(got, want)
    assert not hasattr(graph(x), "nothing")


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch says it of its own compiler
def test_compiled_modules_are_taken_as_what_they_were_made_of():
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    compiled, x = torch.compile(model), torch.randn(4, 6)
    graph = capture(compiled, x)
    assert [layer.name for layer in graph.layers] == ["0.weight"]
    torch.testing.assert_close(graph(x), model(x))
    (batch,) = split_batches(compiled, [(x, torch.zeros(4, dtype=torch.long))])
    assert len(batch[0].args) == 1
    assert batch[1] is not None


ATTENTIONS = {
    "without heads": ((3, 5, 8), {}),
    "without heads, causal": ((3, 5, 8), {"is_causal": True, "scale": 0.3}),
    "without heads, a mask for all": ((3, 5, 8), {"attn_mask": (5, 5)}),
    "without heads, a mask for each": ((3, 5, 8), {"attn_mask": (3, 5, 5)}),
    "windows": ((3, 2, 4, 5, 8), {}),
    "windows, a mask for each": ((3, 2, 4, 5, 8), {"attn_mask": (2, 1, 5, 5)}),
    "grouped": ((3, 4, 5, 8), {"enable_gqa": True, "is_causal": True}),
    "grouped windows": ((3, 2, 4, 5, 8), {"enable_gqa": True, "attn_mask": (5, 5)}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_computed_in_four_dimensions(name, monkeypatch):
    shape, options = ATTENTIONS[name]
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    if options.get("enable_gqa"):
        k, v = k[..., :2, :, :], v[..., :2, :, :]
    if "attn_mask" in options:
        options = options | {"attn_mask": torch.randn(options["attn_mask"], generator=generator, dtype=torch.float64)}
    wanted, run, ranks = F.scaled_dot_product_attention(q, k, v, **options), F.scaled_dot_product_attention, []

    def watched(query, *args, **kwargs):
        ranks.append((query.ndim, kwargs.get("enable_gqa", False)))
        return run(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    torch.testing.assert_close(attend(q, k, v, **options), wanted)
    assert ranks == [(4, False)]


def test_a_captured_graph_attends_in_four_dimensions():
    net = Net(lambda net, x: F.scaled_dot_product_attention(net.a(x), x, x, is_causal=True), a=nn.Linear(6, 6))
    graph = capture(net, torch.randn(3, 5, 6))
    (node,) = graph.module.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    assert node.meta["val"].ndim == 4
    x = torch.randn(1, 5, 6)
    torch.testing.assert_close(graph(x), net(x))


def test_a_view_takes_any_layout():
    """The bias is a mask that needs a gradient: attention takes another kernel, whose result lies otherwise."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.bias = nn.Parameter(torch.randn(1, 2, 5, 5))

        def forward(self, x):
            q = self.a(x).view(x.shape[0], 5, 2, 4).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, q, q, attn_mask=self.bias)
            return y.transpose(1, 2).contiguous().view(x.shape[0], 5, 8)

    model = Biased()
    graph = capture(model, torch.randn(3, 5, 8))
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(graph(x), model(x))
    graph(x.requires_grad_()).sum().backward()
    assert not graph.module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default)


def test_an_example_that_is_a_part_of_another_tensor():
    net = Net(lambda net, x: net.a(x).reshape(-1, 2, 3).flatten(1), a=nn.Linear(6, 6))
    whole = torch.randn(5, 9)
    torch.testing.assert_close(capture(net, whole[:, :6])(x := torch.randn(2, 6)), net(x))
    assert capture(net, whole.t()[:6].t()).example.args[0].is_contiguous()


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_is_joined_with_nothing(count):
    net = Net(lambda net, x: torch.cat([x.new_empty(0), *[net.a(x)] * count], 1), a=nn.Linear(6, 3))
    graph = capture(net, torch.randn(3, 6))
    x = torch.randn(2, 6)
    torch.testing.assert_close(graph(x), net(x))
    joined = graph.module.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    assert [len(node.args[0]) for node in joined] == [2] * (count - 1)


class Object:
    def __init__(self, tensor):
        self.tensor = tensor


def numbers(net, x):
    return torch.from_numpy(net.a(x).detach().numpy())


def written(net, x):
    net.a.weight.data.add_(1)
    return net.a(x)


CAUSES = {
    "a path": (lambda net, x: net.a(x) if x.sum() > 0 else x, "a value of a tensor decides the path", r"torch\.where"),
    "a size": (lambda net, x: net.a(x)[:, : int(x.sum().item())], "decides the path, or a size", "with a mask"),
    "the batch": (lambda net, x: net.a(x.view(4, 6)), "fixes the batch size at 4", r"x\.size\(0\) or -1"),
    "an object": (lambda net, x: Object(net.a(x)), "the model returns a .*Object", "return tensors, in tuples"),
    "numpy": (numbers, "leaves torch for numpy", "compute with torch's functions"),
    "a sparse operator": (lambda net, x: torch.sparse.mm(x.to_sparse(), net.a.weight), "_to_sparse", "dense tensors"),
    "a parameter": (written, "forward changes a parameter", "leave parameters as they are"),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch's own, of tensors that it calls beta
def test_the_way_out_is_that_of_the_cause(cause):
    run, reason, way_out = CAUSES[cause]
    with pytest.raises(UnsupportedModel, match=rf"(?s){reason}.*Way out: .*{way_out}"):
        capture(Net(run, a=nn.Linear(6, 6)), torch.rand(4, 6))


def test_an_input_of_a_class_of_its_own_is_refused():
    net = Net(lambda net, x: net.a(x[0]) + x[1].tensor, a=nn.Linear(6, 6))
    with pytest.raises(UnsupportedModel, match=r"(?s)an input is a .*Object.*Way out: give its tensors as inputs"):
        capture(net, ([torch.rand(4, 6), Object(torch.rand(1))],))


def test_an_operator_of_the_users_own_is_refused():
    @torch.library.custom_op("mixbit_tests::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(UnsupportedModel, match=r"(?s)mixbit_tests::doubled is an operator of your own.*Way out: write"):
        capture(Net(lambda net, x: doubled(net.a(x)), a=nn.Linear(6, 6)), torch.rand(4, 6))


def test_a_missing_input_is_named():
    with pytest.raises(InvalidInput, match="missing 1 required positional argument: 'input2'"):
        capture(nn.Bilinear(3, 3, 2), torch.rand(4, 3))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda net, x: net.a(x) if x.shape[0] > 100 else -net.a(x), "more than 100 samples"),
        (lambda net, x: net.a(x) if x.shape[0] < 4 else -net.a(x), "less than 4"),
        (lambda net, x: net.a(x.reshape(-1, 2, 6)).reshape(-1, 6), "not on the first of them alone"),
    ],
)
def test_a_path_that_depends_on_the_batch_size_is_refused(run, message):
    with pytest.raises(UnsupportedModel, match=message):
        capture(Net(run, a=nn.Linear(6, 6)), torch.rand(4, 6))


class CacheLayer:
    def __init__(self, keys, values):
        self.keys, self.values = keys, values


class Cache:
    """Keys and values of each layer, as the library transformers holds them."""

    def __init__(self, pairs=()):
        self.layers = [CacheLayer(*pair) for pair in pairs]

    def update(self, keys, values, place):
        if place == len(self.layers):
            self.layers.append(CacheLayer(keys, values))
        else:
            layer = self.layers[place]
            layer.keys, layer.values = torch.cat([layer.keys, keys], 1), torch.cat([layer.values, values], 1)
        return self.layers[place].keys, self.layers[place].values


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x, past=None):
        past = Cache() if past is None else past
        q, k, v = self.qkv(x).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, *past.update(k, v, 0))
        return {"logits": self.head(y), "past": past}


def test_a_cache_among_the_inputs_is_captured():
    model, x = Decoder().eval(), torch.randn(3, 7, 6)
    past = model(x[:, :5])["past"]
    inputs = Inputs.of({"x": x[:, 5:], "past": past})
    graph = capture(model, inputs, {"past": [1]})
    returned = graph(**inputs.kwargs)
    ((keys, values),) = returned["past"]
    assert keys.shape == values.shape == (3, 7, 6)
    assert past.layers[0].keys.shape == (3, 5, 6), "the cache that was given is left as it is"
    longer = Inputs.of({"x": x[:, 5:], "past": model(x[:, :4])["past"]})
    graph.check(longer, "batch")
    expected = model(x[:, 5:], model(x[:, :4])["past"])
    torch.testing.assert_close(graph(**longer.kwargs)["logits"], expected["logits"])


def test_a_cache_that_is_made_anew_is_left_out():
    model, x = Decoder().eval(), torch.randn(3, 5, 6)
    returned = capture(model, {"x": x})(x=x)
    assert returned["past"] is None
    torch.testing.assert_close(returned["logits"], model(x)["logits"])
