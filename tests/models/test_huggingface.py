"""Folders of Hugging Face's, of networks with random weights that are made here."""

import json
import shutil
import sys

import pytest
import torch

from mixbit.core.errors import InvalidInput
from mixbit.graph.capture import capture
from mixbit.models.load import load_model

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {**SMALL, "vocab_size": 32, "max_position_embeddings": 16}
PICTURES = {**SMALL, "image_size": 8, "patch_size": 4}


def bert(kind, **options):
    return getattr(transformers, f"BertFor{kind}")(transformers.BertConfig(**TEXT, **options))


def vit(kind, **options):
    return getattr(transformers, f"ViT{kind}")(transformers.ViTConfig(**PICTURES, **options))


def small_llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))


ANSWERS = "multi:start_logits=classification,end_logits=classification"
TASKS = {
    "single label": (lambda: bert("SequenceClassification", num_labels=3), "classification"),
    "several labels": (
        lambda: bert("SequenceClassification", num_labels=3, problem_type="multi_label_classification"),
        "multilabel",
    ),
    "one number": (lambda: bert("SequenceClassification", num_labels=1), "regression"),
    "tokens": (lambda: bert("TokenClassification"), "language"),
    "masked": (lambda: bert("MaskedLM"), "language"),
    "answers": (lambda: bert("QuestionAnswering"), ANSWERS),
    "causal": (small_llama, "language"),
    "pictures": (lambda: vit("ForImageClassification"), "classification"),
    "features": (lambda: vit("Model"), "regression"),
    "sounds": (
        lambda: transformers.ASTForAudioClassification(transformers.ASTConfig(**SMALL, num_mel_bins=32, max_length=32)),
        "classification",
    ),
}


@pytest.mark.parametrize("case", TASKS)
def test_the_task_is_that_of_the_architecture(case, tmp_path):
    make, task = TASKS[case]
    model = make()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded.module) is type(model)
    assert loaded.task == task
    assert loaded.causal == (case == "causal")
    assert not loaded.module.training
    assert loaded.folder == tmp_path
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.module.state_dict()[name]), name


def test_no_bar_of_another_library_is_shown(saved, capfd):
    logging = pytest.importorskip("transformers").utils.logging
    capfd.readouterr()
    load_model(str(saved))
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


def test_pictures_have_an_example_and_classes_their_names(tmp_path):
    vit("ForImageClassification", num_channels=1, num_labels=2, id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.classes == ("cat", "dog")
    assert {name: tuple(each.shape) for name, each in loaded.example.items()} == {"pixel_values": (2, 1, 8, 8)}
    vit("ForImageClassification").save_pretrained(tmp_path / "unnamed")
    assert load_model(str(tmp_path / "unnamed")).classes is None, "LABEL_0 is no name"


def test_the_size_of_pictures_is_the_processors_where_the_network_tells_none(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).example is None
    processor = transformers.ViTImageProcessorPil(size={"height": 24, "width": 16})
    processor.save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).example["pixel_values"].shape == (2, 3, 24, 16)


def test_no_cache_is_returned_and_the_graph_does_what_the_model_does(tmp_path):
    model = small_llama().eval()
    assert model.config.use_cache
    model.save_pretrained(tmp_path)
    ids = torch.arange(20).reshape(2, 10)
    graph = capture(load_model(str(tmp_path)).module, {"input_ids": ids, "labels": ids})
    with torch.no_grad():
        returned = graph(input_ids=ids)
        assert returned.keys() == {"logits"}
        torch.testing.assert_close(returned["logits"], model(ids).logits, rtol=1e-4, atol=1e-5)


def test_half_precision_becomes_float32(tmp_path):
    bert("SequenceClassification").half().save_pretrained(tmp_path)
    assert {each.dtype for each in load_model(str(tmp_path)).module.parameters()} == {torch.float32}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    bert("SequenceClassification").save_pretrained(folder)
    return folder


def edited(saved, tmp_path, **entries):
    folder = shutil.copytree(saved, tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


BAD = {
    "an unknown class": (
        {"architectures": ["BertForSequenceClassificatio"]},
        r"has no model BertForSequenceClassificatio \(did you mean BertForSequenceClassification\?\), and code of the",
    ),
    "no model": ({"architectures": ["BertTokenizer"]}, "has no model BertTokenizer"),
    "no class": ({"architectures": None}, 'names no class under "architectures"'),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantized already; give the network in float"),
    "other shapes": ({"vocab_size": 40}, "transformers cannot load it|of other shapes"),
    "weights missing": ({"num_hidden_layers": 2}, r"weights of BertForSequenceClassification are not in the files"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration(case, saved, tmp_path):
    entries, message = BAD[case]
    with pytest.raises(InvalidInput, match=message):
        load_model(str(edited(saved, tmp_path, **entries)))


def test_code_of_the_folder_never_runs(saved, tmp_path):
    folder = edited(
        saved, tmp_path, architectures=["Mine"], auto_map={"AutoModel": "mine.Mine", "AutoConfig": "mine.Config"}
    )
    (folder / "mine.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(InvalidInput, match="code of the folder is never run; give a function"):
        load_model(str(folder))
    folder = edited(saved, tmp_path / "other", auto_map={"AutoConfig": "mine.Config"})
    (folder / "mine.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_pickles_are_refused(saved, tmp_path):
    folder = edited(saved, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=r"pytorch_model.bin is a pickle, .*model.save_pretrained\(folder\)"):
        load_model(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InvalidInput, match=r"no \*.safetensors there"):
        load_model(str(folder))
    (folder / "model.safetensors").write_text("no weights")
    with pytest.raises(InvalidInput, match="transformers cannot load it"):
        load_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InvalidInput, match=r"a folder without config.json; give one that save_pretrained wrote"):
        load_model(str(folder))


def test_without_transformers_the_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InvalidInput, match=r"pip install 'mixbit\[huggingface\]'"):
        load_model(str(saved))


def test_weights_of_other_shapes_are_named(saved, tmp_path):
    folder = edited(saved, tmp_path, intermediate_size=8)
    with pytest.raises(
        InvalidInput, match=r"weights of .* are not in the files, or of other shapes, as .*intermediate"
    ):
        load_model(str(folder))


def test_names_of_some_classes_are_names_of_none(saved, tmp_path):
    assert load_model(str(edited(saved, tmp_path, id2label={"0": "a", "5": "b"}))).classes is None
