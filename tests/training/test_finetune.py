"""Fine-tuning on a small problem that a float network solves, and on the demo's network."""

import dataclasses
import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mixbit.core.batches import split_all
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.demo import data
from mixbit.demo.network import trained
from mixbit.graph.capture import capture
from mixbit.quantization.quantizer import quantizers_of
from mixbit.roundings.quantize import quantize
from mixbit.training.finetune import FILE_NAME, check_first, finetune, train
from mixbit.training.loop import Objective, Training, rate
from tests.networks import assert_state_is, by_tensor, crude_scales, plan_of, state_of

pytestmark = pytest.mark.usefixtures("anything")

SETTINGS = Training(lr=0.01)


@functools.cache
def problem():
    """A float graph, its rough simulation, and twelve batches of points, labelled by it; for tests that change none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    points = torch.randn(192, 6)
    batches = list(zip(points.split(16), model(points).argmax(1).split(16), strict=True))
    graph = capture(model, points[:2])
    with crude_scales():
        return graph, quantize(graph, plan_of(graph.layers, "w2a4"), [points]), batches


def run(*, graph=None, batches=None, teacher="float", task=None, settings=SETTINGS, epochs=3, held_out=None, path=None):
    float_graph, simulated, given = problem()
    objective = Objective(
        task or Task.classification(), float_graph if teacher else None, settings.distil, settings.temperature
    )
    return train(
        graph or simulated,
        given if batches is None else batches,
        objective,
        epochs=epochs,
        settings=settings,
        eval_batches=held_out,
        path=path,
    )


def tensors(graph):
    return graph.module.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("teacher", "distil"), [("float", 1.0), ("float", 0.5), (None, 1.0)])
def test_training_lowers_the_loss_and_leaves_the_graph_alone(teacher, distil):
    float_graph, simulated, batches = problem()
    before, of_teacher = state_of(simulated.module), state_of(float_graph.module)
    objective = Objective(Task.classification(), float_graph if teacher else None, distil, 1.0)
    found = train(simulated, batches, objective, epochs=4, settings=SETTINGS)
    assert_state_is(simulated.module, before)
    assert_state_is(float_graph.module, of_teacher)
    assert len(found.losses) == 5
    assert found.losses[found.best] == min(found.losses) < 0.95 * found.losses[0]
    assert not any(one.learns for one in quantizers_of(found.graph))
    assert all((one.scale > 0).all() for one in quantizers_of(found.graph))
    changed = [
        name for name, tensor in tensors(found.graph).items() if not torch.equal(tensor, tensors(simulated)[name])
    ]
    assert len([name for name in changed if name.endswith("scale")]) == 4  # of two weights and two inputs
    zero_points = [name for name in changed if name.endswith("zero_point")]
    assert not zero_points
    with torch.no_grad():  # the loss is that of the graph that came back, its biases rounded
        held_out = batches[3::4]
        loss = sum(float(objective(found.graph, *pair)) for pair in split_all(held_out, 1)) / len(held_out)
    assert loss == pytest.approx(found.losses[found.best], rel=1e-5)


@pytest.mark.parametrize(
    ("scheme", "lr", "least"), [pytest.param("w2a8", 1e-3, 0.5, marks=pytest.mark.slow), ("w3a8", 1e-4, 0.8)]
)
def test_the_demos_network_gets_closer_to_its_float_self(scheme, lr, least):
    batches = [images for images, _ in data.calibration_batches()]
    graph = capture(trained(), batches[0])
    simulated = quantize(graph, plan_of(graph.layers, scheme), batches)
    objective = Objective(Task.classification(), graph, 1.0, 1.0)
    found = train(simulated, batches, objective, epochs=2, settings=Training(lr=lr))
    assert found.losses[found.best] < least * found.losses[0]


def test_the_same_seed_gives_the_same_bits():
    state = torch.random.get_rng_state()
    one, other = run(), run()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.losses == other.losses
    assert_same(tensors(one.graph), tensors(other.graph))
    assert run(settings=dataclasses.replace(SETTINGS, seed=1)).losses != one.losses


def loader(generator=None):
    _, _, batches = problem()
    points, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return DataLoader(TensorDataset(points, labels), batch_size=20, shuffle=True, generator=generator)


@pytest.mark.parametrize("kind", ["list", "loader", "loader with a generator"])
def test_an_interrupted_training_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    def arguments():
        if kind == "list":
            return {}
        generator = torch.Generator().manual_seed(5) if "generator" in kind else None
        return {"batches": loader(generator), "held_out": problem()[2][:3]}

    whole = run(**arguments())
    seen = []

    class Interrupted(Exception):
        pass

    def interrupted(*given):
        seen.append(given)
        if len(seen) == 17:  # in the second epoch
            raise Interrupted
        return rate(*given)

    path = tmp_path / "new" / FILE_NAME
    with monkeypatch.context() as patched:
        patched.setattr("mixbit.training.loop.rate", interrupted)
        with pytest.raises(Interrupted):
            run(**arguments(), path=path)
    assert path.exists()
    torch.manual_seed(77)  # another process draws otherwise
    resumed = run(**arguments(), path=path)
    assert resumed.losses == whole.losses
    assert_same(tensors(resumed.graph), tensors(whole.graph))
    monkeypatch.setattr("mixbit.training.loop.rate", None)
    assert run(**arguments(), path=path).losses == whole.losses, "a training that is done takes no further step"


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / FILE_NAME
    run(epochs=1, path=path)
    for other in ({"epochs": 2}, {"settings": Training(lr=0.02)}, {"teacher": None}, {"batches": problem()[2][:8]}):
        with pytest.raises(InvalidInput, match="another training"):
            run(**{"epochs": 1, "path": path} | other)
    path.write_bytes(b"pickle")
    with pytest.raises(InvalidInput, match="delete it"):
        run(epochs=1, path=path)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_epoch(tmp_path):
    graph, simulated, batches = problem()
    calls = []

    def loss(output, labels):
        calls.append(0)
        return nn.functional.cross_entropy(output, labels) + (torch.nan if len(calls) == 3 + 9 + 3 + 5 else 0)

    task = Task.classification().with_loss(loss)
    with pytest.raises(InvalidInput, match=r"epoch 2, step 4: .*finite"):
        finetune(simulated, batches, task=task, settings=SETTINGS, folder=tmp_path)
    assert (tmp_path / FILE_NAME).exists()
    with pytest.raises(
        InvalidInput, match=r"epoch \d, step \d+: the (loss|gradient) is (nan|inf); train with a lower lr"
    ):
        finetune(graph, batches, teacher=graph, settings=Training(lr=1e30), epochs=1)


def test_worse_epochs_are_not_kept():
    found = run(settings=Training(lr=5.0, max_norm=1e9))
    _, simulated, _ = problem()
    assert found.best == 0
    assert_same(tensors(found.graph), tensors(simulated))


def test_weights_that_are_left_out_stay_zero():
    graph, simulated, batches = problem.__wrapped__()
    mask = torch.rand(16, 6) > 0.5
    by_tensor(simulated)["0.weight"].mask = mask
    found = finetune(simulated, batches, teacher=graph, settings=SETTINGS, epochs=3)
    weight = found.module.get_parameter("0.weight")
    assert (weight[~mask] == 0).all()
    assert (by_tensor(found)["0.weight"](weight)[~mask] == 0).all()
    assert not torch.equal(weight, simulated.module.get_parameter("0.weight") * mask)


def test_a_float_graph_trains():
    graph, _, batches = problem.__wrapped__()
    with torch.no_grad():
        graph.module.get_parameter("0.weight").add_(torch.randn(16, 6))
    found = run(graph=graph, batches=batches)
    assert found.losses[found.best] < 0.6 * found.losses[0]
    assert found.graph.plan is None


def test_a_regression_is_distilled():
    student, _, batches = problem.__wrapped__()
    with torch.no_grad():
        student.module.get_parameter("2.bias").add_(1)
    found = run(graph=student, batches=[points for points, _ in batches], task=Task.regression(), epochs=6)
    assert found.losses[0] == pytest.approx(0.5 * 4)  # half the squared distance, over four outputs
    assert found.losses[found.best] < 0.5 * found.losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": iter([torch.ones(2, 6)])}, "used up after one pass"),
        ({"batches": []}, "no batch"),
        ({"batches": [torch.ones(2, 6), torch.ones(2, 6)], "teacher": None}, "no labels"),
        ({"batches": [(torch.ones(2, 6), torch.tensor([0, 9]))] * 4, "teacher": None}, "classes 0..3"),
        ({"batches": [torch.ones(2, 6)] * 4 + [torch.ones(2, 5)] * 3}, r"step \d: .*shape \(2, 5\), the example"),
        ({"epochs": 0}, "epochs=0"),
        ({"settings": Training(lr=-1.0)}, "lr=-1.0"),
        ({"settings": Training(distil=2.0)}, "share between 0 and 1"),
        ({"settings": Training(weight_decay=float("nan"))}, "weight_decay=nan"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(change, message):
    with pytest.raises(InvalidInput, match=message):
        run(**change)


def test_loaders_are_asked_for_held_out_data_and_fail_clearly():
    _, _, batches = problem()
    with pytest.raises(InvalidInput, match="give eval_batches, or a list"):
        run(batches=loader())
    ragged = [(torch.ones(6 + index % 2), torch.tensor(0)) for index in range(8)]
    with pytest.raises(
        InvalidInput, match="the data fails while iterated: RuntimeError: stack expects each tensor to be equal size"
    ):
        run(batches=DataLoader(ragged, batch_size=4), held_out=batches)
    assert len(run(batches=loader(), held_out=batches, epochs=1).losses) == 2


class Named(nn.Module):
    def __init__(self, *names, width=4):
        super().__init__()
        self.linear, self.names = nn.Linear(6, width), names

    def forward(self, x):
        return {name: self.linear(x) for name in self.names}


@pytest.mark.parametrize(
    ("ours", "others", "message"),
    [
        (Named("a"), Named("b"), r"returns {'b': \[2, 4\]}, the graph {'a': \[2, 4\]}; give the float graph"),
        (Named("a", "b"), Named("a"), r"returns {'a': \[2, 4\]}, the graph {'a': \[2, 4\], 'b'"),
        (Named("a"), Named("a", "b"), r"returns {'a': \[2, 4\], 'b'"),
        (Named("a"), Named("a", width=3), r"returns {'a': \[2, 3\]}"),
        (nn.Linear(6, 4), Named("a"), r"the graph {'output': \[2, 4\]}"),
        (nn.Linear(6, 4), nn.Linear(5, 4), r"input 0 has shape \(2, 6\), the example \(2, 5\)"),
    ],
)
def test_a_teacher_of_another_model_is_refused(ours, others, message):
    graph, teacher = (capture(each, torch.ones(2, width_of(each))) for each in (ours, others))
    with pytest.raises(InvalidInput, match=rf"teacher: .*{message}"):
        finetune(graph, [torch.ones(2, 6)] * 4, teacher=teacher, epochs=1)


def width_of(module):
    return next(module.parameters()).shape[1]


def test_the_rate_rises_and_falls():
    assert [rate(step, 10, 0.2) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert rate(6, 10, 0.2) == pytest.approx(0.5)
    assert 0 < rate(9, 10, 0.2) < 0.05
    assert [rate(step, 4, 0.0) for step in (0, 2, 9)] == pytest.approx([1.0, 0.5, 0.0])


def test_what_is_no_graph_is_refused():
    graph, simulated, batches = problem()
    with pytest.raises(InvalidInput, match=r"graph: a GraphModule; give what capture\(\) or quantize\(\) returned"):
        finetune(simulated.module, batches)
    with pytest.raises(InvalidInput, match="teacher: a GraphModule; give what"):
        finetune(simulated, batches, teacher=graph.module)


def test_looking_at_the_first_batch_draws_nothing():
    graph, _, batches = problem()
    points = torch.cat([points for points, _ in batches])
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(points), batch_size=4, shuffle=True, generator=generator)
    before, of_torch = generator.get_state(), torch.get_rng_state()
    check_first(graph, loader)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), of_torch)
    with pytest.raises(InvalidInput, match="batch 0 to train on: input 0 has shape"):
        check_first(graph, [torch.cat([points, points], 1)])


def test_a_loader_whose_length_is_not_what_it_yields_is_refused():
    _, _, batches = problem()

    class Long:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter(batches[:3])

    with pytest.raises(InvalidInput, match=r"epoch 1: the loader yields 3 batches, and its len\(\) says 5"):
        run(batches=Long(), held_out=batches)


@pytest.mark.parametrize("name", ["lr", "scale_lr", "weight_decay", "distil", "temperature", "warm_up", "max_norm"])
@pytest.mark.parametrize("value", ["0.1", None, True])
def test_settings_are_numbers(name, value):
    with pytest.raises(InvalidInput, match=f"{name}=.*: give a number"):
        dataclasses.replace(SETTINGS, **{name: value}).check()


def test_training_needs_no_gradients_from_outside():
    graph, simulated, batches = problem()
    with torch.no_grad():
        found = finetune(simulated, batches, teacher=graph, settings=SETTINGS, epochs=3)
    assert not torch.equal(found.module.get_parameter("0.weight"), simulated.module.get_parameter("0.weight"))


def test_a_loader_that_fails_is_told_from_training():
    graph, simulated, batches = problem()

    class Failing:
        def __len__(self):
            return 2

        def __iter__(self):
            yield batches[0]
            raise FileNotFoundError("image 3")

    with pytest.raises(InvalidInput, match="the data fails while iterated: FileNotFoundError: image 3"):
        finetune(simulated, Failing(), teacher=graph, settings=SETTINGS, eval_batches=batches[:1])
