"""Folders for transformers and compressed-tensors, of networks with random weights that are made here."""

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mixbit.core import Plan, Scheme, TargetMismatch, UnsupportedModel, find_target, read_tensors
from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph
from mixbit.metrics.measure import blank_table, measure
from mixbit.quantization.affine import quantize as integers_of
from mixbit.quantization.offers import uniform_plan, why_not
from mixbit.quantization.quantizer import weight_quantizers
from mixbit.roundings.quantize import quantize
from mixbit.targets.capabilities import capabilities
from mixbit.targets.export import export
from mixbit.targets.verify import predicted_bytes, verify
from tests.networks import assert_state_is, plan_of, state_of

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

TARGET = find_target("compressed_tensors")
WORDS = 64
TEXT = {
    "hidden_size": 40,  # 40 weights in a row: no width but 4 and 8 fills its words
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "vocab_size": WORDS,
    "max_position_embeddings": 32,
}


def llama(**options: Any) -> nn.Module:
    config = transformers.LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **TEXT, **options)
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=4, vocab_size=WORDS, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=1, **TEXT))


def albert() -> nn.Module:
    config = transformers.AlbertConfig(num_hidden_layers=2, embedding_size=24, num_hidden_groups=1, **TEXT)
    return transformers.AlbertForSequenceClassification(config)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "tied llama": functools.partial(llama, tie_word_embeddings=True),
    "gpt2": gpt2,
    "bert": bert,
    "albert": albert,
}
#: For layers to take in turn where they fit.
FORMATS = ("w2", "w3g8", "w4", "w5g4", "w6", "w7g8", "w8", "w8z", "w8g8z", "w4t", "float16", "bfloat16", "float")
#: Widths that are tried by `make slow` alone: 3, 5 and 8 have all that is special.
PLAIN, SLOW = (2, 4, 6, 7), pytest.mark.slow
#: `mixed` gives the layers FORMATS, `mixed inputs` widths in turn with a8.
CASES = [
    *[pytest.param("llama", f"w{bits}", marks=SLOW if bits in PLAIN else ()) for bits in TARGET.weight_bits],
    *[("llama", scheme) for scheme in ("w3g8", "w8z", "w8a8", "w8a8d", "w4g8a8", "mixed", "mixed inputs", "float")],
    *[("bert", scheme) for scheme in ("mixed", "mixed inputs")],
    ("tied llama", "mixed"),
    pytest.param("tied llama", "mixed inputs", marks=SLOW),
    *[pytest.param(name, "mixed inputs", marks=pytest.mark.slow) for name in ("gpt2", "albert")],
]


def inputs(count: int) -> dict[str, Tensor]:
    ids = torch.randint(0, WORDS, (count, 8), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@functools.cache
def captured(name: str) -> Graph:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for norm in (module for module in model.modules() if type(module).__name__.endswith("Norm")):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    model.config.use_cache = False
    return capture(model, inputs(4))


def planned(graph: Graph, scheme: str) -> Plan:
    if scheme not in {"mixed", "mixed inputs"}:
        return uniform_plan(graph, scheme, target=TARGET.name)
    texts = FORMATS if scheme == "mixed" else tuple(f"w{bits}a8" for bits in TARGET.weight_bits)
    chosen = {}
    for number, layer in enumerate(graph.layers):
        fitting = [text for text in texts if why_not(layer, Scheme.parse(text), TARGET) is None]
        chosen[layer.name] = fitting[number % len(fitting)] if fitting else "float"
    return plan_of(graph.layers, chosen, TARGET.name)


@functools.cache
def simulated(name: str, scheme: str) -> Graph:
    graph = captured(name)
    return quantize(graph, planned(graph, scheme), [inputs(16)])


@pytest.fixture(scope="module")
def write(tmp_path_factory) -> Callable[[str, str], Path]:
    """Write a case, once."""

    @functools.cache
    def once(name: str, scheme: str) -> Path:
        folder = tmp_path_factory.mktemp("written") / "out"
        export(simulated(name, scheme), folder)
        return folder

    return once


def returned(graph: Graph, folder: Path, given: dict[str, Tensor]) -> list[np.ndarray]:
    return TARGET.load(folder, graph).run([leaf.numpy() for leaf in graph.tensors(Inputs.of(given))])


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_transformers_computes_the_numbers_of_the_simulation(write, name, scheme):
    graph, given = captured(name), inputs(5)
    with torch.no_grad():
        wanted = pytree.tree_leaves(simulated(name, scheme)(**given))
    for got, leaf in zip(returned(graph, write(name, scheme), given), wanted, strict=True):
        if "a8d" in scheme:  # ranges at run time are sums of other numbers: a value in the middle may go either way
            assert np.sqrt(np.mean((got - leaf.numpy()) ** 2)) < 0.03 * float(leaf.std())
        else:
            np.testing.assert_array_equal(got, leaf.numpy())


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_it_holds_exactly_the_bytes_that_were_predicted(write, name, scheme):
    plan = planned(captured(name), scheme)
    held = {layer: weight.weight_bytes for layer, weight in TARGET.stored(write(name, scheme)).items()}
    assert held == predicted_bytes(simulated(name, scheme), plan) == predicted_bytes(captured(name), plan)


def bits_of(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[rows, count] integers that lie one after the other in the bits of a row, lowest first, less 2^(bits-1)."""
    rows = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    each = rows[:, : count * bits].reshape(len(words), count, bits).astype(np.int64)
    return (each << np.arange(bits)).sum(2) - 2 ** (bits - 1)


@pytest.mark.parametrize(
    "bits", [pytest.param(bits, marks=SLOW if bits in PLAIN else ()) for bits in TARGET.weight_bits]
)
def test_integers_lie_in_words_without_gaps(write, bits):
    tensors, _ = read_tensors(write("llama", f"w{bits}") / "model.safetensors")
    graph = simulated("llama", f"w{bits}")
    names = [name for name in weight_quantizers(graph) if "proj" in name]
    assert len(names) == 7
    for name in names:
        quantizer, weight = weight_quantizers(graph)[name], graph.parameter(name).detach()
        rows, columns = weight.shape
        words = tensors[f"{name}_packed"].numpy()
        assert words.shape == (rows, -(-columns * bits // 32))
        wanted = integers_of(weight, quantizer.scale, quantizer.zero_point, 0, *quantizer.format.integer_range)
        np.testing.assert_array_equal(bits_of(words, bits, columns), wanted.numpy())
        assert tensors[f"{name}_shape"].tolist() == [rows, columns]
        assert torch.equal(tensors[f"{name}_scale"].flatten(), quantizer.scale)


def test_the_configuration_names_every_layer_once(write):
    config = json.loads((write("llama", "mixed") / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "use_cache" not in config
    assert "_name_or_path" not in config
    quantization, plan = config["quantization_config"], planned(captured("llama"), "mixed")
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "mixed-precision"
    widths = {
        target: (group["weights"]["num_bits"], group["weights"]["group_size"])
        for group in quantization["config_groups"].values()
        for target in group["targets"]
    }
    wanted = {}
    for layer in plan.layers:
        fmt = plan.scheme(layer).weight
        if fmt is not None and fmt.floating is None:
            wanted[layer.removesuffix(".weight")] = (fmt.bits, fmt.group)
    assert widths == wanted
    assert {*quantization["ignore"]} == {
        layer.removesuffix(".weight") for layer in plan.layers if "proj" in layer or "head" in layer
    } - wanted.keys()
    assert json.loads((write("llama", "w4") / "config.json").read_text())["quantization_config"]["format"] == (
        "pack-quantized"
    )
    assert "quantization_config" not in json.loads((write("llama", "float") / "config.json").read_text())


def test_layers_that_the_library_cannot_store_stay_in_float():
    plans = {name: uniform_plan(captured(name), "w4", target=TARGET.name).layers for name in NETWORKS}
    assert {name for name, scheme in plans["llama"].items() if scheme == "float"} == {"model.embed_tokens.weight"}
    assert {name for name, scheme in plans["tied llama"].items() if scheme == "float"} == {"lm_head.weight"}
    assert {*plans["gpt2"].values()} == {"float"}
    table = blank_table(captured("tied llama"), target=TARGET, choices=["w4g8", "w8"])
    assert table.choices == ("w4g8", "w8", "float")
    assert np.isfinite(table.loss).tolist() == [[False, False, True], *[[True, True, False]] * 7]


@pytest.mark.parametrize(
    ("name", "layer", "scheme", "reason"),
    [
        ("gpt2", "c_attn", "w4", "stores weights of torch's Linear and Embedding, not of Conv1D"),
        ("gpt2", "lm_head", "w8", "2 modules hold the weight, and compressed-tensors stores that of each apart"),
        ("llama", "embed", "w4", "an Embedding is stored in 8 bits or in float"),
        ("albert", "query", "w8a8", "its module reads 2 tensors, and holds one static range"),
        ("llama", "q_proj", "w4z", "zero points beside 8 bits alone: transformers does not load those of packed"),
        ("llama", "q_proj", "w8a8dr", "divides the range of a row or group by 127.5 steps, not by 127"),
        ("llama", "q_proj", "w8a8drz", "takes one range for all rows of inputs of two dimensions"),
        ("llama", "q_proj", "w8@2:4", "no zeros left out"),
        ("llama", "q_proj", "w8a16", "inputs a8 or float"),
    ],
)
def test_what_it_does_not_store_is_told_with_the_reason(name, layer, scheme, reason):
    some = next(each for each in captured(name).layers if layer in each.name)
    told = why_not(some, Scheme.parse(scheme), TARGET)
    assert told is not None
    assert reason in told
    plan = plan_of(captured(name).layers, {each.name: "float" for each in captured(name).layers}, TARGET.name)
    plan = plan.model_copy(update={"layers": {**plan.layers, some.name: scheme}})
    with pytest.raises(InvalidInput, match=reason[:20]):
        quantize(captured(name), plan, [inputs(4)])


def test_rows_of_capabilities_are_what_layers_are_offered():
    layers = {"linear": "q_proj", "embedding": "embed"}
    for row in capabilities(TARGET.name):
        if row.operator not in layers:
            assert (row.runs == "float") == (row.scheme in {"float", "float16", "bfloat16"})
            continue
        layer = next(each for each in captured("llama").layers if layers[row.operator] in each.name)
        scheme = Scheme.parse(row.scheme)
        if scheme.weight is None or scheme.weight.group is None:  # 32 do not divide its 40 inputs
            assert (why_not(layer, scheme, TARGET) is None) == (row.runs != "refused"), row
        assert row.runs != "integers"


def test_choices_that_no_layer_takes_are_refused():
    with pytest.raises(InvalidInput, match=r"compressed_tensors stores no layer so: .* 2 modules hold the weight"):
        measure(captured("gpt2"), [inputs(8)], target=TARGET, choices=["w4"], task="language")


def test_a_tied_table_is_stored_once(write):
    tensors, _ = read_tensors(write("tied llama", "mixed") / "model.safetensors")
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors


def test_no_layer_gets_a_bias_that_its_class_does_not_have():
    graph = simulated("llama", "w2")
    assert not [name for name, _ in graph.module.named_parameters() if name.endswith("bias")]
    for correction in ("at_once", "sequential"):
        graph = captured("bert")
        quantized = quantize(graph, planned(graph, "w2"), [inputs(16)], bias_correction=correction)
        name = "bert.encoder.layer.0.attention.self.query.bias"
        assert not torch.equal(quantized.parameter(name), graph.parameter(name))  # where there is one it is corrected
        assert {name for name, _ in quantized.module.named_parameters()} == {
            name for name, _ in graph.module.named_parameters()
        }


def test_an_input_is_rounded_for_layers_alone():
    """The residual stream of BERT, which layers read too, stays in float."""
    graph = simulated("bert", "w8a8")
    readers = {
        user.name
        for node in graph.module.graph.find_nodes(op="call_module")
        if "activations" in str(node.target)
        for user in node.users
    }
    assert readers == {name for name, (_, operation) in graph.operations.items() if operation.input is not None}


def test_small_floats_and_what_is_left_out_keep_their_numbers(write):
    tensors, _ = read_tensors(write("llama", "mixed") / "model.safetensors")
    graph, plan = captured("llama"), planned(captured("llama"), "mixed")
    for name, tensor in graph.module.state_dict().items():
        scheme = plan.layers.get(name, "float")
        if scheme in {"float", "float16", "bfloat16"}:
            dtype = torch.float32 if scheme == "float" else getattr(torch, scheme)
            assert tensors[name].dtype == dtype
            assert torch.equal(tensors[name], tensor.to(dtype))


@pytest.mark.parametrize("scheme", ["mixed", "mixed inputs"])
def test_verification_finds_nothing(write, scheme):
    folder, graph = write("bert", scheme), captured("bert")
    comparison = verify(folder, graph, simulated("bert", scheme), [inputs(8)], task=Task.regression())
    assert comparison.problems == ()


def test_writing_leaves_the_graph_as_it_is(tmp_path):
    graph = simulated("llama", "mixed")
    before, code = state_of(graph.module), graph.module.code
    TARGET.write(graph, tmp_path)
    assert_state_is(graph.module, before)
    assert graph.module.code == code


def test_a_network_that_is_no_model_of_transformers_is_refused(tmp_path):
    graph = simulated("bert", "float")
    config = dict(graph.config or {})
    others = {
        "the network is none; give a model of transformers or its folder, or take --target packed": None,
        "has no model Own": config | {"architectures": ["Own"]},
        "has no model AutoModel": config | {"architectures": ["AutoModel"]},
        r"lacks bert.encoder.layer.1.attention.output.LayerNorm.bias of Bert": config | {"num_hidden_layers": 2},
        r"has other sizes of classifier.bias": config | {"num_labels": 3},
        r"has besides bert.encoder.layer.0.attention": config | {"num_hidden_layers": 0},
    }
    for reason, held in others.items():
        with pytest.raises(UnsupportedModel, match=reason):
            TARGET.write(dataclasses.replace(graph, config=held), tmp_path)
        assert not any(tmp_path.iterdir())


def test_a_captured_graph_has_the_configuration_of_a_model_of_transformers_alone():
    config = captured("bert").config
    assert config is not None
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["vocab_size"] == WORDS
    assert capture(nn.Linear(4, 4), torch.zeros(2, 4)).config is None


@pytest.mark.parametrize("package", ["compressed_tensors", "transformers"])
def test_a_missing_library_is_named(package, tmp_path, monkeypatch):
    graph = simulated("llama", "w4")
    monkeypatch.setitem(sys.modules, package, None)
    for use in (TARGET.require, lambda: export(graph, tmp_path), lambda: TARGET.load(tmp_path, captured("llama"))):
        with pytest.raises(InvalidInput, match=r"pip install 'mixbit\[compressed_tensors\]'"):
            use()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_its_end(data: bytes) -> bytes:
    return data[:-40]


def random_bytes(data: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(data))


@pytest.mark.parametrize("damage", [cut, without_its_end, random_bytes, lambda _: b"", lambda _: b"{}"])
@pytest.mark.parametrize("file", TARGET.files)
def test_damaged_files_are_refused(write, file, damage, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(write("bert", "mixed"), folder)
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    for use in (TARGET.check_files, lambda folder: TARGET.load(folder, captured("bert"))):
        with pytest.raises((TargetMismatch, InvalidInput), match=file):
            use(folder)
    (folder / file).unlink()
    with pytest.raises(InvalidInput, match=file):
        TARGET.check_files(folder)


def test_files_of_another_network_are_refused(write, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(write("bert", "mixed"), folder)
    shutil.copy(write("llama", "mixed") / "model.safetensors", folder)
    with pytest.raises(TargetMismatch, match=r"is missing, which config\.json or a layer needs"):
        TARGET.load(folder, captured("bert"))
    shutil.copy(write("bert", "mixed") / "model.safetensors", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(TargetMismatch, match="has no model NoSuchModel"):
        TARGET.load(folder, captured("bert"))


def test_loading_says_nothing(write, capfd):
    capfd.readouterr()
    returned(captured("llama"), write("llama", "mixed inputs"), inputs(2))
    assert capfd.readouterr() == ("", "")


def test_the_program_of_its_usage_runs(write, monkeypatch):
    from mixbit.core import Port, Ports

    graph, folder = captured("bert"), write("bert", "mixed")
    runner = TARGET.load(folder, graph)
    ports = Ports((Port("input_ids", "int64", (2, 8)), Port("attention_mask", "int64", (2, 8))), ())
    (code,) = TARGET.usage(ports, runner.environment).values()
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    zeros = [np.zeros((2, 8), np.int64)] * 2
    np.testing.assert_array_equal(names["outputs"].logits.numpy(), runner.run(zeros)[0])
