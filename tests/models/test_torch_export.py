"""Archives of torch.export as MODEL."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import mixbit as mb
from mixbit.core import InvalidInput, UnsupportedModel
from mixbit.models.load import load_model


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, image):
        return {"logits": self.head(self.norm(self.conv(image)).relu().flatten(1))}


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(1, 6).softmax(-1)


class Touching(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def saved(path, network, inputs, **options):
    torch.export.save(torch.export.export(network.eval(), inputs, **options), path)
    return str(path)


def changed(path, change):
    """The archive with what `change` makes of the content of each file by name."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, change(name, content))


@pytest.mark.parametrize("free", [True, False])
def test_program_has_the_networks_names_and_outputs(tmp_path, free):
    network, image = Network().eval(), torch.randn(2, 3, 8, 8)
    shapes = {"image": {0: Dim.DYNAMIC}} if free else None
    path = saved(tmp_path / "net.pt2", network, (image[: None if free else 1],), dynamic_shapes=shapes)
    loaded = load_model(path)
    graph = mb.capture(loaded.module, loaded.example)
    assert [layer.name for layer in graph.layers] == ["conv.weight", "head.weight"]
    more = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(graph(image=more)["logits"], network(more)["logits"], rtol=1e-4, atol=1e-5)
    assert not any("batch_norm" in str(node.target) for node in graph.module.graph.nodes)


@pytest.mark.parametrize("network", [Fixed(), Touching()])
def test_program_of_one_batch_size_is_refused_with_the_way_out(tmp_path, network):
    path = saved(tmp_path / "net.pt2", network, (torch.randn(1, 6),))
    with pytest.raises(UnsupportedModel, match=r"exported for 1 samples alone; export it.*dynamic_shapes"):
        load_model(path)


class _Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap-was-sprung"),)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(
        tmp_path / "net.pt2", Network(), (torch.randn(2, 3, 8, 8),), dynamic_shapes={"image": {0: Dim.DYNAMIC}}
    )
    changed(path, lambda name, content: pickle.dumps(_Trap()) if "sample_inputs" in name else content)
    load_model(path)

    def as_pickle(name, content):
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            config["config"]["conv.weight"]["use_pickle"] = True
            return json.dumps(config).encode()
        return pickle.dumps(_Trap()) if name.endswith("weight_0") else content

    changed(path, as_pickle)
    with pytest.raises(InvalidInput, match=r"'conv.weight' is stored as a pickle"):
        load_model(path)
    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize("formula", ["__import__('os').getcwd()", "open('x')", "s0.__class__", "S('exit()')"])
def test_formulas_are_arithmetic_alone(tmp_path, formula):
    path = saved(
        tmp_path / "net.pt2", Network(), (torch.randn(2, 3, 8, 8),), dynamic_shapes={"image": {0: Dim.DYNAMIC}}
    )

    def planted(name, content):
        return (
            content.replace(b'"expr_str": "', b'"expr_str": "' + formula.encode() + b" + ")
            if "/models/" in name
            else content
        )

    changed(path, planted)
    with pytest.raises(InvalidInput, match=r"is no formula of sizes"):
        load_model(path)


def test_file_that_is_no_archive(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(InvalidInput, match=r"net.pt2"):
        load_model(str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match=r"is no archive of torch.export.save"):
        load_model(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_state_dict.json", b"")
    with pytest.raises(InvalidInput, match=r"holds no program of torch.export.save"):
        load_model(str(path))
    whole = Path(saved(tmp_path / "whole.pt2", Network(), (torch.randn(2, 3, 8, 8),))).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=r"is no archive of torch.export.save, or part of one"):
        load_model(str(path))


@pytest.mark.parametrize("layers", [(nn.Linear(6, 3), nn.Dropout()), (nn.Linear(6, 3), nn.BatchNorm1d(3))])
def test_program_that_was_exported_as_it_trains_is_refused(tmp_path, layers):
    network = nn.Sequential(*layers).train()
    shapes = ({0: Dim.DYNAMIC},)
    torch.export.save(torch.export.export(network, (torch.randn(2, 6),), dynamic_shapes=shapes), tmp_path / "net.pt2")
    with pytest.raises(UnsupportedModel, match=r"call model.eval\(\) and export it again"):
        load_model(str(tmp_path / "net.pt2"))
    load_model(saved(tmp_path / "net.pt2", network, (torch.randn(2, 6),), dynamic_shapes=shapes))


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, inputs, *, scale):
        return self.head(inputs["x"]) * scale + inputs["y"]


def test_inputs_in_a_dict_are_called_so(tmp_path):
    network, inputs = OfDict(), {"x": torch.randn(1, 6), "y": torch.randn(1, 3)}
    path = saved(tmp_path / "net.pt2", network, (inputs,), kwargs={"scale": torch.ones(1, 1)})
    loaded, more = load_model(path), {"x": torch.randn(4, 6), "y": torch.randn(4, 3)}
    assert loaded.example is None, "values in a row would not say where they belong"
    scale = torch.rand(4, 1)
    torch.testing.assert_close(loaded.module(more, scale=scale), network(more, scale=scale))


@pytest.mark.parametrize(("ending", "content"), [(".json", b"{"), ("weights_config.json", b"[]")])
def test_archive_whose_descriptions_are_damaged(tmp_path, ending, content):
    path = saved(tmp_path / "net.pt2", Network(), (torch.randn(1, 3, 8, 8),))
    changed(path, lambda name, old: content if name.endswith(ending) else old)
    with pytest.raises(InvalidInput, match=r"net.pt2: is damaged .*; export it again"):
        load_model(path)
