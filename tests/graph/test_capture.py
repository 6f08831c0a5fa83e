import copy
import functools
import linecache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.graph.capture import capture
from tests.networks import Attention, Net, Residual, assert_state_is, state_of


class Several(nn.Module):
    """Inputs by position, by keyword and optional; a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.b = nn.Linear(4, 2)

    def forward(self, x, mask=None, *, scale=None):
        y = self.a(x)
        if mask is not None:
            y = y + self.b(mask)
        if scale is not None:
            y = y * scale
        return {"logits": y, "rest": (x, [y + 1])}


class Sign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x):
        y = self.a(x)
        if y.sum() > 0:  # the line that the message must name
            return y
        return -y


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Sign())

    def forward(self, x):
        return self.inner(x)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 2)

    def forward(self, x):
        return self.a(x.view(4, 6))  # the line that the message must name


MODELS = {
    "residual": (Residual, torch.randn(4, 2, 6, 6)),
    "attention": (Attention, torch.randint(0, 6, (3, 5))),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(3, 5, 4)),
    "several": (Several, {"x": torch.randn(3, 3), "mask": torch.randn(3, 4), "scale": torch.randn(3, 1)}),
    "positional": (Several, (torch.randn(3, 3), torch.randn(3, 4))),
    "lstm": (lambda: Net(lambda net, x: net.a(x)[0], a=nn.LSTM(3, 4, batch_first=True)), torch.randn(3, 5, 3)),
    "in place": (
        lambda: Net(lambda net, x: net.b(net.a(x).relu_().add_(1).mul_(2)), a=nn.Linear(3, 4), b=nn.Linear(4, 2)),
        torch.randn(3, 3),
    ),
    "shared": (lambda: Net(lambda net, x: net.a(net.a(x)), a=nn.Linear(3, 3)), torch.randn(3, 3)),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)), torch.randn(3, 3)),
    "buffer": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)),
        torch.randn(3, 3),
    ),
    "no parameters": (lambda: nn.Softmax(1), torch.randn(3, 3)),
}


def example_of(name, size):
    """An example of that batch size, other than the one in the table."""
    torch.manual_seed(size)

    def resized(leaf):
        if leaf.is_floating_point():
            return torch.randn(size, *leaf.shape[1:])
        return torch.randint(0, 6, (size, *leaf.shape[1:]))

    return pytree.tree_map_only(torch.Tensor, resized, MODELS[name][1])


def outputs(module, example):
    call = Inputs.of(example)
    return module(*call.args, **call.kwargs)


def assert_same_outputs(got, want):
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@functools.cache
def captured(name):
    """A model with flags that differ from tensor to tensor, its state before it was captured, and its graph."""
    torch.manual_seed(0)
    make, example = MODELS[name]
    model = make().train()
    list(model.modules())[-1].eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    return model, state_of(model), capture(model, example)


def test_the_graph_computes_what_the_model_does_at_any_batch_size(name):
    model, _, graph = captured(name)
    model = copy.deepcopy(model).eval()
    for size in (1, 2, 7):
        other = example_of(name, size)
        assert_same_outputs(outputs(graph, other), outputs(model, other))


def test_the_model_is_left_as_it_is(name):
    values = [leaf.clone() for leaf in Inputs.of(MODELS[name][1]).tensors]
    model, state, graph = captured(name)
    outputs(graph, MODELS[name][1])
    assert_state_is(model, state)
    assert all(torch.equal(*pair) for pair in zip(Inputs.of(MODELS[name][1]).tensors, values, strict=True))
    assert all(parameter.requires_grad for parameter in graph.module.parameters())
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not own & {tensor.untyped_storage().data_ptr() for tensor in graph.module.state_dict().values()}


def test_the_graph_keeps_the_names_of_parameters():
    graph = capture(Residual(), torch.randn(2, 2, 6, 6))
    names = {"first.weight", "first.bias", "second.weight", "second.bias", "last.weight", "last.bias"}
    assert set(dict(graph.module.named_parameters())) == names
    assert not list(graph.module.buffers())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_one_sample_is_example_enough(size):
    model = Residual().eval()
    graph = capture(model, torch.randn(size, 2, 6, 6))
    assert graph.batch_size == max(size, 2)
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(graph(x), model(x))


def test_a_shared_parameter_is_one_tensor():
    graph = capture(Attention(), torch.randint(0, 6, (3, 5)))
    names = {node.target for node in graph.module.graph.find_nodes(op="get_attr")}
    assert ("tokens.weight" in names) != ("head.weight" in names)
    assert len(dict(graph.module.named_parameters(remove_duplicate=False))) == len(names) - 1  # all but the buffer


def test_keywords_may_come_in_any_order():
    model = Several()
    graph = capture(model, MODELS["several"][1])
    other = example_of("several", 2)
    backwards = dict(reversed(other.items()))
    assert_same_outputs(graph(**backwards), model(**other))
    assert [leaf.shape for leaf in graph.leaves(Inputs.of(backwards))] == [
        leaf.shape for leaf in graph.leaves(Inputs.of(other))
    ]


def test_inputs_that_are_no_tensors_are_constants():
    class Flag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x, negative, nothing=None):
            return -self.a(x) if negative else self.a(x)

    model = Flag()
    graph = capture(model, (torch.randn(3, 3), True))
    x = torch.randn(5, 3)
    torch.testing.assert_close(graph(x, True), -model.a(x))
    assert graph.leaves(Inputs.of((x, True)))[1] is True


def test_a_model_that_counts_its_calls_is_left_as_it_is():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(3))

        def forward(self, x):
            self.calls += 1
            self.last = x.mean(0)
            return self.a(x)

    model = Counter()
    state = state_of(model)
    graph = capture(model, torch.randn(3, 3))
    assert_state_is(model, state)
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    graph(torch.randn(3, 3))
    assert all(torch.equal(graph.module.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_model_that_writes_into_its_input_leaves_the_example_alone():
    model = Net(lambda net, x: net.a(x.relu_()), a=nn.Linear(3, 2))
    x = torch.randn(4, 3)
    kept = x.clone()
    graph = capture(model, x)
    assert torch.equal(x, kept)
    assert_same_outputs(graph(x), model(kept.clone()))
    assert torch.equal(x, kept)


def test_float64_stays_float64():
    graph = capture(nn.Linear(3, 2).double(), torch.randn(2, 3, dtype=torch.float64))
    assert graph(torch.randn(5, 3, dtype=torch.float64)).dtype == torch.float64


def test_a_mask_of_infinities_is_a_fine_buffer():
    model = Net(lambda net, x: (net.a(x) + net.mask).softmax(-1), a=nn.Linear(3, 3))
    model.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0]))
    torch.testing.assert_close(capture(model, x := torch.randn(2, 3))(x), model(x))


def test_infinite_outputs_compare():
    model = Net(lambda net, x: net.a(x).masked_fill(net.mask, float("-inf")), a=nn.Linear(3, 3))
    model.register_buffer("mask", torch.tensor([False, True, False]))
    torch.testing.assert_close(capture(model, x := torch.randn(2, 3))(x), model(x))


def test_padded_samples_are_what_the_unfused_encoder_makes_of_them():
    """torch's fused encoder writes zeros there, which no exported graph does."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.a = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, x, padding):
            return self.a(x, src_key_padding_mask=padding)

    padding = torch.tensor([[False, False, True], [False, True, True]])
    graph = capture(Padded().requires_grad_(False), (torch.randn(2, 3, 4), padding))
    assert torch.isfinite(graph(torch.randn(2, 3, 4), padding)).all()


def test_attention_is_captured_in_single_operators_though_its_weights_are_frozen():
    model = nn.MultiheadAttention(4, 2, batch_first=True).requires_grad_(False)
    net = Net(lambda net, x: net.a(x, x, x, need_weights=False)[0], a=model).eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    graph = capture(net, torch.randn(2, 5, 4))
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert not any("native_multi_head" in str(node.target) for node in graph.module.graph.nodes)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch says it of its own trees
def test_copies_of_a_graph_have_nodes_of_their_own():
    graph = capture(Residual().eval(), x := torch.randn(2, 2, 6, 6))
    name = next(node.name for node in graph.module.graph.nodes if node.op == "call_function")
    node = graph.node(name)
    other = copy.deepcopy(graph)
    assert other.node(name) is not node
    assert other.node(name).graph is other.module.graph
    assert torch.equal(other(x), graph(x))
    assert graph.node(name) is node
    with pytest.raises(KeyError):
        graph.node("nothing")


def test_shapes_are_those_of_the_example():
    graph = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(5, 3))
    assert {graph.shapes[node.name] for node in graph.module.graph.nodes if node.op == "call_function"} == {(5, 4)}
    assert graph.device == torch.device("cpu")
    assert capture(nn.Softmax(1), torch.randn(5, 3)).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("make", "example"), [(Sign, torch.randn(4, 3)), (Outer, torch.randn(4, 3)), (FixedBatch, torch.randn(4, 6))]
)
def test_code_that_cannot_be_followed_is_named_by_its_line(make, example):
    model = make()
    state = state_of(model.train())
    with pytest.raises(UnsupportedModel, match="Way out") as caught:
        capture(model, example)
    assert_state_is(model, state)
    file, line, *_ = str(caught.value).split(" at ")[1].split(":")
    assert file == __file__
    assert "the line that the message must name" in linecache.getline(file, int(line))
    assert ("batch size at 4" in str(caught.value)) == (make is FixedBatch)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: F.dropout(net.a(x)),
        lambda net, x: net.a(x) - net.a(x).mean(0),
        lambda net, x: net.a(x) + torch.rand(1) * 10,
    ],
    ids=["dropout in eval mode", "mean over the batch", "noise"],
)
def test_a_model_that_no_graph_can_repeat_is_refused(run):
    with pytest.raises(UnsupportedModel, match="not deterministic in eval mode, or depends on its batch"):
        capture(Net(run, a=nn.Linear(3, 2)), torch.randn(8, 3))


def broken(name, value):
    model = Residual()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (broken("second.weight", float("nan")), torch.randn(2, 2, 6, 6), r"second\.weight: holds NaN"),
        (broken("last.bias", float("inf")), torch.randn(2, 2, 6, 6), r"last\.bias: holds inf"),
        (nn.LazyLinear(3), torch.randn(2, 3), "weight: not initialised"),
        (nn.Linear(3, 2).bfloat16(), torch.randn(2, 3).bfloat16(), r"weight: torch\.bfloat16; .*model\.float\(\)"),
        (nn.Linear(3, 2).half(), torch.randn(2, 3).half(), r"weight: torch\.float16"),
        (nn.Linear(3, 2).double(), torch.randn(2, 3), "the model fails on inputs .*same dtype"),
        (nn.Linear(3, 2), torch.randn(2, 4), r"the model fails on inputs .*\(2, 4\).*RuntimeError"),
        (nn.Linear(3, 2), torch.randn(0, 3), "holds no sample"),
        (nn.Linear(3, 2), 3, "a int; give a tensor"),
        (nn.Linear(3, 2), {"input": 3.0}, "no tensor; give tensors"),
        (Several(), {"x": torch.randn(2, 3), "mask": torch.randn(3, 4)}, "must be one batch size"),
        (nn.Linear(3, 2).state_dict(), torch.randn(2, 3), "a OrderedDict; give an nn.Module"),
        (nn.Linear, torch.randn(2, 3), "a type; give an nn.Module"),
        (Net(lambda net, x: x.log()), -torch.ones(2, 3), "returns NaN on the example"),
    ],
)
def test_what_cannot_be_captured_is_refused(model, example, message):
    with pytest.raises(InvalidInput, match=message):
        capture(model, example)


def ids(dtype=torch.long):
    return torch.zeros(2, 5, dtype=dtype)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.randn(2, 4), torch.randn(2, 4)), r"input 0 has shape \(2, 4\), the example \(3, 3\)"),
        ((torch.randn(2, 3, 1), torch.randn(2, 4)), r"input 0 has shape"),
        ((torch.randn(2, 3).double(), torch.randn(2, 4)), r"input 0 is torch\.float64, the example torch\.float32"),
        ((torch.randn(2, 3), ids()), r"input 1 is torch\.int64"),
        ((torch.randn(2, 3), torch.full((2, 4), float("nan"))), "input 1 holds NaN or inf"),
        ((torch.randn(2, 3), -torch.full((2, 4), float("inf"))), "input 1 holds NaN or inf"),
        ((torch.randn(2, 3),), "do not fit the example's"),
        ({"x": torch.randn(2, 3), "mask": torch.randn(2, 4)}, "do not fit the example's"),
        ((torch.randn(2, 3), [torch.randn(2, 4), torch.randn(2, 4)]), "3 values, the example has 2"),
        ((torch.randn(2, 3), None), "input 1 is a NoneType, not a tensor"),
        ((torch.randn(2, 3), torch.randn(1, 4)), "must be one batch size"),
        ((torch.randn(0, 3), torch.randn(0, 4)), "holds no sample"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(inputs, message):
    graph = capture(Several(), MODELS["positional"][1])
    with pytest.raises(InvalidInput, match=message):
        graph.leaves(Inputs.of(inputs))


def test_a_missing_keyword_is_refused():
    graph = capture(Several(), MODELS["several"][1])
    with pytest.raises(InvalidInput, match="do not fit the example's"):
        graph.leaves(Inputs.of({"x": torch.randn(2, 3), "mask": torch.randn(2, 4)}))


def test_inputs_that_are_no_tensors_may_not_change():
    net = nn.Linear(3, 2)
    graph = capture(Net(lambda net, x: net.a(x[0]) * x[1], a=net), ([torch.randn(2, 3), 2],))
    x = torch.randn(4, 3)
    torch.testing.assert_close(graph.leaves(Inputs.of(([x, 2],)))[0], x)
    for other in (5, 2.0, True, None, torch.tensor(2)):
        with pytest.raises(InvalidInput, match=r"no tensor may not change|the example has"):
            graph.leaves(Inputs.of(([x, other],)))


def test_parameters_and_random_numbers_stay_as_they_were():
    net = Net(lambda net, x: net.b(net.a(x).flatten(1)), a=nn.Embedding(10, 4, max_norm=0.1), b=nn.Linear(8, 2))
    before, state = net.a.weight.detach().clone(), torch.get_rng_state()
    capture(net, torch.randint(0, 10, (3, 2), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(net.a.weight, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3)), "TopLevelTracedModule; give the module"),
        (lambda: nn.DataParallel(nn.Linear(3, 2)), "DataParallel; give the module"),
        (lambda: nn.Linear(3, 2, device="meta"), "weight: not initialised"),
        (lambda: nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2)), r"0\.weight: shape \[0, 3\] holds no number"),
        (lambda: None, "a NoneType; give an nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's own, of zero-sized layers and traces
def test_modules_that_cannot_be_captured(make, message):
    with pytest.raises(InvalidInput, match=message):
        capture(make(), torch.randn(2, 3))


def test_labels_of_a_batch_are_left_out():
    torch.manual_seed(0)
    model, x, labels = Several().eval(), torch.randn(4, 3), torch.arange(4)
    wanted = capture(model, x)
    for batch in ((x, labels), [x, labels], {"x": x, "labels": labels}):
        graph = capture(model, batch)
        assert len(graph.tensors(graph.example)) == 1
        assert torch.equal(graph(x)["logits"], wanted(x)["logits"])
    assert len(capture(model, (x, torch.randn(4, 4))).example.args) == 2, "an input that the model takes is none"
