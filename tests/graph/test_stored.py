"""Networks whose weights stay in files, against the same networks in memory."""

import gc
import weakref
from dataclasses import replace
from functools import partial
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core import find_target
from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.core.io.spill import Spilled
from mixbit.core.io.stored import Room, StoredTensor, num_bytes
from mixbit.graph import parameters_on_meta
from mixbit.graph.room import check_room
from mixbit.models.load import load_model
from mixbit.quantization.calibrate import calibrate
from tests.networks import plan_of

transformers = pytest.importorskip("transformers")
CHOICES = ["w4g16", "w8"]
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, SIZES["vocab_size"], (4, 8), generator=generator)} for _ in range(count)]


@pytest.fixture(scope="module", params=["untied", pytest.param("tied", marks=pytest.mark.slow)])
def runs(request, tmp_path_factory):
    """A language model in files of bfloat16: the whole run in memory, from the files, and what was in memory then."""
    place, tied = tmp_path_factory.mktemp("llama"), request.param == "tied"
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(place, max_shard_size="1GB" if tied else "12KB")
    alive, read = Alive(), StoredTensor.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredTensor, "read", lambda tensor: alive.watch(read, tensor))
        loaded = load_model(str(place), on_meta=True)
        graph = mb.capture(loaded.module, tokens(1, 1)[0], weights=loaded.weights)
        files = run(graph, tmp_path_factory.mktemp("from-files"))
    graph = mb.capture(load_model(str(place)).module, tokens(1, 1)[0])
    return SimpleNamespace(folder=place, files=files, memory=run(graph, tmp_path_factory.mktemp("memory")), alive=alive)


def run(graph, out):
    """Table, plan, and bytes of the packed file by rounding."""
    calibration, files = calibrate(graph, tokens(3, 2), target="packed"), {}
    tables = [
        mb.measure(graph, calibration, target="packed", task="language", metric=metric, choices=CHOICES)
        for metric in ("fisher", "weight_error")
    ]
    plan = mb.search(tables[0], mb.Budget(mean_bits=6))
    for rounding, correction in (("nearest", "at_once"), ("gptq", "at_once"), ("nearest", "sequential")):
        small = mb.quantize(graph, plan, calibration, rounding=rounding, bias_correction=correction, task="language")
        path = mb.export(small, out / f"{rounding} {correction}")
        files[rounding, correction] = path.read_bytes()
    return SimpleNamespace(graph=graph, tables=tables, plan=plan, files=files, calibration=calibration)


class Alive:
    """Bytes of the weights that were read and are still in memory, and the most that there were."""

    def __init__(self):
        self.now, self.most, self.read = 0, 0, 0

    def watch(self, read, tensor):
        value = read(tensor)
        size = value.nbytes
        self.now, self.read = self.now + size, self.read + size
        self.most = max(self.most, self.now)
        weakref.finalize(value.untyped_storage(), partial(self._gone, size))
        return value

    def _gone(self, size):
        self.now -= size


def test_tables_plan_and_integers_are_those_of_the_network_in_memory(runs):
    files, memory = runs.files, runs.memory
    assert files.graph.layers == memory.graph.layers
    for table, wanted in zip(files.tables, memory.tables, strict=True):
        assert (table.loss > 0).any()
        assert (table.loss == wanted.loss).all()
        assert (table.standard_error == wanted.standard_error).all()
    assert files.plan == memory.plan
    assert len(set(files.plan.layers.values())) > 1
    assert len(set(files.files.values())) == len(files.files)  # roundings differ from one another
    assert files.files == memory.files


def test_few_weights_are_in_memory_at_once(runs):
    layers = runs.files.graph.layers
    assert runs.alive.read > 5 * 4 * sum(layer.numel for layer in layers)  # every pass reads all of them
    assert runs.alive.most <= 4 * 4 * max(layer.numel for layer in layers) < 2 * sum(layer.numel for layer in layers)
    assert runs.alive.now == 0


def test_what_grows_with_the_network_is_in_files(runs):
    assert isinstance(runs.files.calibration.samples, Spilled)
    assert isinstance(runs.files.calibration.weight_factors, Spilled)
    assert all(parameter.is_meta for parameter in runs.files.graph.module.parameters())


def in_onnx(path):
    """Name -> numbers, of all that the file holds."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


def in_openvino(path):
    """Name -> bytes, of what belongs to layers; sorted, of all other constants."""
    openvino = pytest.importorskip("openvino")
    constants = [each for each in openvino.Core().read_model(path).get_ops() if each.get_type_name() == "Constant"]
    held = [(each.get_friendly_name(), each.data.reshape(-1).view(np.uint8)) for each in constants]
    others = sorted(content.tobytes() for name, content in held if "/" not in name)
    return {name: content for name, content in held if "/" in name} | {"": np.frombuffer(b"".join(others), np.uint8)}


@pytest.mark.parametrize(
    ("target", "schemes"),
    [
        ("onnxruntime", ("w4g16", "w8")),
        pytest.param("onnxruntime", ("w3", "float16"), marks=pytest.mark.slow),
        pytest.param("onnxruntime", ("w8a8",), marks=pytest.mark.slow),
        ("openvino", ("w4g16", "w8")),
        pytest.param("openvino", ("w3", "float16"), marks=pytest.mark.slow),
        ("openvino", ("w8a8",)),
    ],
)
def test_runtimes_files_are_written_a_weight_at_a_time_and_hold_the_same(runs, tmp_path, monkeypatch, target, schemes):
    layers, contents = runs.memory.graph.layers, {"onnxruntime": in_onnx, "openvino": in_openvino}[target]
    plan = plan_of(layers, dict(zip((layer.name for layer in layers), cycle(schemes))), target)
    held, outputs = {}, {}
    monkeypatch.setattr(runs.alive, "most", 0)  # until here
    monkeypatch.setattr("mixbit.targets._openvino.LARGE", 256)
    for name, each in (("memory", runs.memory), ("files", runs.files)):
        small = mb.quantize(each.graph, plan, calibrate(each.graph, tokens(3, 2), target=target))
        runs.alive.most = 0
        held[name] = contents(mb.export(small, tmp_path / name))
        runner = find_target(target).load(tmp_path / name, small)
        outputs[name] = runner.run([tokens(1, 7)[0]["input_ids"].numpy()])
    assert held["files"].keys() == held["memory"].keys()
    assert all((held["files"][name] == array).all() for name, array in held["memory"].items())
    assert all((ours == whole).all() for ours, whole in zip(outputs["files"], outputs["memory"], strict=True))
    assert 0 < runs.alive.most <= 2 * 4 * max(layer.numel for layer in layers)
    assert runs.alive.now == 0


def test_the_memory_of_openvinos_constants_lives_as_long_as_what_is_left_of_them(runs, monkeypatch):
    pytest.importorskip("openvino")
    from mixbit.targets import _openvino

    made, zeros = [], np.zeros

    def watched(*size, **options):
        made.append(weakref.ref(array := zeros(*size, **options)))
        return array

    monkeypatch.setattr(_openvino, "LARGE", 256)
    monkeypatch.setattr(_openvino, "np", SimpleNamespace(**vars(np) | {"zeros": watched}))
    plan = plan_of(runs.files.graph.layers, "w8", "openvino")
    small = mb.quantize(runs.files.graph, plan, calibrate(runs.files.graph, tokens(3, 2), target="openvino"))
    model, left = _openvino.converted(small, {8: "i8"})
    gc.collect()
    assert len(left.contents) == len(made) > 0
    held = {array().ctypes.data for array in made if array() is not None}
    places = [each for each in model.get_ops() if each.get_friendly_name() in left.contents]
    assert {each.data.ctypes.data for each in places} == held
    assert len(held) == len(made)


def test_finished_layers_are_taken_up_unless_the_weights_change(runs, tmp_path):
    def rounded():
        mb.quantize(runs.files.graph, runs.files.plan, runs.files.calibration, rounding="gptq", folder=tmp_path)
        return {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    first = rounded()
    assert first
    assert rounded() == first
    for file in runs.folder.glob("*.safetensors"):
        file.touch()
    assert all(time > first[path] for path, time in rounded().items())


class Small(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 4)
        self.register_buffer("shift", torch.arange(4.0), persistent=False)

    def forward(self, x):
        return self.second(self.first(x).relu()) + self.shift


def saved(model, path):
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def on_meta(width=16):
    with parameters_on_meta():
        return Small(width)


def test_a_module_on_meta_takes_its_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    model = Small()
    graph = mb.capture(on_meta(), torch.randn(3, 8), weights=saved(model, tmp_path / "small.safetensors"))
    x = torch.randn(5, 8)
    assert torch.equal(graph(x), model(x))


def nan_in(model):
    model.second.weight.data[0, 0] = torch.nan


def shorter(path):
    path.write_bytes(path.read_bytes()[:-4])


MISTAKES = {
    "another shape": (lambda: on_meta(12), lambda _: None, r"first.weight has shape \[16, 8\], the model \[12, 8\]"),
    "a file that was cut": (on_meta, shorter, "does not fit the file of"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_files_that_do_not_fit_are_refused(case, tmp_path):
    make, damage, message = MISTAKES[case]
    path = saved(Small(), tmp_path / "small.safetensors")
    damage(path)
    with pytest.raises(InvalidInput, match=message):
        mb.capture(make(), torch.randn(3, 8), weights=path)


def test_a_weight_that_is_in_no_file_is_named(tmp_path):
    path = saved(nn.Sequential(nn.Linear(8, 4)), tmp_path / "other.safetensors")
    with pytest.raises(InvalidInput, match=r"holds no first\.weight"):
        mb.capture(on_meta(), torch.randn(3, 8), weights=path)


def test_a_buffer_without_numbers_is_refused_with_the_way_out(tmp_path):
    path = saved(Small(), tmp_path / "small.safetensors")
    with pytest.raises(InvalidInput, match=r"holds no shift.*parameters_on_meta"):
        mb.capture(Small().to("meta"), torch.randn(3, 8), weights=path)


def test_nan_is_told_when_it_is_read(tmp_path):
    model = Small()
    nan_in(model)
    graph = mb.capture(on_meta(), torch.randn(3, 8), weights=saved(model, tmp_path / "small.safetensors"))
    with pytest.raises(InvalidInput, match=r"second.weight holds NaN or inf"):
        calibrate(graph, [torch.randn(3, 8)])


def test_batch_norms_that_would_be_folded_are_refused(tmp_path):
    def make():
        return nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))

    path = saved(make(), tmp_path / "norm.safetensors")
    with parameters_on_meta():
        model = make()
    with pytest.raises(UnsupportedModel, match="fold batch norms before saving"):
        mb.capture(model.eval(), torch.randn(3, 8), weights=path)


def test_a_layer_that_does_not_fit_the_memory_is_named(runs):
    graph = replace(runs.files.graph, room=Room(700 * 10**6))
    with pytest.raises(InvalidInput, match=r"memory 0.7GB: \S+ \[64, 32\] takes 0.70GB"):
        check_room(graph, 4)


def test_a_full_scratch_folder_is_named(runs, tmp_path, monkeypatch):
    graph = replace(runs.files.graph, room=Room(4 * 10**9, tmp_path))
    monkeypatch.setattr("mixbit.core.io.spill.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InvalidInput, match=rf"scratch: 0 GiB are written to {tmp_path}, which has no room.*--scratch"):
        calibrate(graph, tokens(2, 2), target="packed")
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "metric": (lambda graph, _: mb.measure(graph, tokens(2, 2), target="packed", metric="hawq"), "one of fisher"),
    "rounding": (lambda graph, plan: mb.quantize(graph, plan, tokens(2, 2), rounding="brecq"), "one of nearest, gptq"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_the_whole_network_is_refused(case, runs):
    call, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message):
        call(runs.files.graph, runs.files.plan)


@pytest.mark.parametrize(("text", "number"), [("4GB", 4 * 10**9), ("3.5GiB", int(3.5 * 2**30)), ("1000", 1000)])
def test_bytes_are_read(text, number):
    assert num_bytes(text, "memory") == number


@pytest.mark.parametrize("text", ["", "four", "4 apples", "0GB", "-1GB"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(InvalidInput, match="give bytes, as 4GB"):
        num_bytes(text, "memory")
