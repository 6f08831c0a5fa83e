"""A network of several outputs, from data to artefact: every output of the file is near the model's."""

import json

import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core.errors import InvalidInput
from mixbit.core.target import find_target
from mixbit.core.task import Task
from mixbit.pipeline import Settings
from mixbit.results.check_set import CheckSet
from mixbit.results.recheck import recheck
from tests.networks import Net


def detector():
    """Kinds, boxes in pixels and scores of 0 to 1, which spread by 1, 100 and 0.3; (kinds, {boxes, scores})."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())

    def run(net, x):
        x = net.body(x)
        kinds = net.kinds(x).mean((2, 3))
        boxes, scores = 100 * net.boxes(x).flatten(2), net.scores(x).flatten(2).sigmoid()
        return kinds, {"places": torch.cat([boxes, scores], 1).transpose(1, 2)}

    parts = {"kinds": nn.Conv2d(16, 5, 3), "boxes": nn.Conv2d(16, 4, 1), "scores": nn.Conv2d(16, 2, 1)}
    net = Net(run, body=body, **parts).eval()
    with torch.no_grad():
        for part in parts.values():
            part.weight *= 6
    return net


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 12, 12, generator=generator) + torch.randn(count, 3, 1, 1, generator=generator)


def relative(got, wanted, whole):
    """Root mean square difference of each channel, over its spread in all samples."""
    return ((got - wanted).square().flatten(0, -2).mean(0) / whole.flatten(0, -2).var(0, correction=0)).sqrt()


@pytest.fixture(scope="module", params=["openvino", "onnxruntime", "litert"])
def deployed(request, tmp_path_factory):
    model, out = detector(), tmp_path_factory.mktemp("outputs") / "out"
    settings = Settings(task=Task.classification())
    batches = [images(16, seed) for seed in range(6)]
    return model, mb.auto_quantize(
        model, batches, target=request.param, budget=mb.Budget(mean_bits=5), out=out, settings=settings
    )


@pytest.mark.parametrize("count", [1, 3, 32])
def test_every_output_is_near_the_simulations_and_the_models(deployed, count):
    model, result = deployed
    x = images(32, 9)
    whole, places = model(x)
    runner = find_target(result.plan.target).load(result.folder)
    got = [torch.from_numpy(each) for each in runner.run([x[:count].numpy()])]
    simulated = result.simulated(x[:count])
    if count == 32:
        assert relative(got[0], whole, whole).max() < 0.35
        assert relative(got[1], places["places"], places["places"]).max() < 0.25
    for one, other, all_of_it in zip(
        got, (simulated[0], simulated[1]["places"]), (whole, places["places"]), strict=True
    ):
        assert relative(one, other, all_of_it).max() < 0.02


def test_no_head_takes_the_fewest_bits_for_nothing(deployed):
    _, result = deployed
    assert {layer: scheme for layer, scheme in result.plan.layers.items() if scheme == "w2a8"} == {}
    assert result.comparison.outputs.keys() == {"0", "1.places"}
    assert result.comparison.problems == ()
    written = json.loads((result.folder / "result.json").read_text())
    assert written["outputs"] == result.comparison.outputs


def test_the_check_set_holds_every_output(deployed):
    _, result = deployed
    check = CheckSet.load(result.folder)
    assert {name: tuple(each.shape[1:]) for name, each in check.outputs.items()} == {"0": (5,), "1.places": (9, 6)}
    assert recheck(result.folder).outputs == pytest.approx(result.comparison.outputs, abs=5e-3)


def test_scores_of_the_users_own_run_the_artefact(tmp_path):
    networks = []

    def score(network, batches):
        networks.append((type(network).__name__, next(network.parameters()).device.type))
        kinds, places = network(batches[0])
        return float(kinds.mean() + places["places"].mean())

    settings = Settings(task=Task.detection(), score=score, choices=["w8a8"])
    result = mb.auto_quantize(
        detector(),
        [images(8, seed) for seed in range(4)],
        target="onnxruntime",
        budget=mb.Budget(max_drop=1e6),
        out=tmp_path / "out",
        settings=settings,
    )
    assert ("Artefact", "cpu") in networks
    scores = [part["score"] for part in (result.result.float_, result.result.simulated, result.result.deployed)]
    assert scores[1] == pytest.approx(scores[2], rel=1e-3)
    assert scores[0] != scores[1]


def test_a_task_that_names_other_outputs_is_refused_before_anything_is_measured(tmp_path):
    task = Task.multi({"0": Task.classification(), "boxes": Task.regression()})
    with pytest.raises(InvalidInput, match=r"returns no output 'boxes'; it returns 0, 1\.places"):
        mb.auto_quantize(
            detector(),
            [images(8, seed) for seed in range(4)],
            target="onnxruntime",
            budget=mb.Budget(mean_bits=5),
            out=tmp_path / "out",
            settings=Settings(task=task),
        )
