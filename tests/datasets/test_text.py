"""Texts by a tokenizer of the test's own, and tables of texts and of pictures."""

import pytest
import torch
from torch import nn

from mixbit.core.batches import split_all
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.datasets.load import Reading
from mixbit.models.load import LoadedModel
from tests.datasets.given import load_data

transformers = pytest.importorskip("transformers")
WORDS = ["<pad>", "<unk>", "the", "cat", "dog", "sits", "runs", "away", ",", "good", "bad"]


class Encoder(nn.Module):
    def forward(self, input_ids=None, attention_mask=None):
        return input_ids.float() * attention_mask


class Decoder(nn.Module):
    def forward(self, input_ids, decoder_input_ids):
        return input_ids + decoder_input_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("net")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    made.model_max_length = 12
    made.save_pretrained(place)
    return place


def ids(text):
    return [WORDS.index(word) if word in WORDS else 1 for word in text.replace(",", " ,").split()]


def test_a_causal_model_gets_blocks_whose_labels_are_the_next_tokens(folder, tmp_path):
    lines = ["the cat sits\n", "the dog runs away , away\n"] * 11
    (tmp_path / "a.txt").write_text("".join(lines))
    model = LoadedModel(Encoder(), "language", folder, causal=True)
    (batch,) = load_data(str(tmp_path / "a.txt"), model, Reading(length=5)).batches
    tokens = ids(" ".join(lines))
    blocks = {tuple(tokens[start : start + 5]) for start in range(0, len(tokens) - 4, 5)}
    assert {tuple(row) for row in batch["input_ids"].tolist()} == blocks
    assert len(batch["input_ids"]) == len(tokens) // 5
    assert (batch["attention_mask"] == 1).all()
    ((_, labels),) = Task.language().aligned(split_all([batch], None))
    assert torch.equal(labels[:, :-1], batch["input_ids"][:, 1:])
    assert (labels[:, -1] == -100).all()


def test_the_length_is_the_tokenizers_or_the_models(folder, tmp_path):
    (tmp_path / "a.txt").write_text("the cat " * 50)
    model = LoadedModel(Encoder(), "language", folder, causal=True)

    def length(**reading):
        return next(iter(load_data(str(tmp_path / "a.txt"), model, Reading(**reading)).batches))["input_ids"].shape[1]

    assert length() == 12
    model.module.config = transformers.GPT2Config(n_positions=7)
    assert length() == 7
    with pytest.raises(InvalidInput, match="--length 9: the model takes 7 tokens at most"):
        length(length=9)
    (tmp_path / "a.txt").write_text("the cat")
    with pytest.raises(InvalidInput, match="2 tokens, a sample has 7; give a longer text, or a smaller --length"):
        length()


def test_other_models_get_lines_padded_to_the_longest(folder, tmp_path):
    lines = ["the cat sits", "dog", "the dog runs away, away, away, away, away, away, away, away"]
    (tmp_path / "a.txt").write_text("\n\n".join(lines) + "\n")
    (batch,) = load_data(str(tmp_path / "a.txt"), LoadedModel(Encoder(), folder=folder)).batches
    assert batch.keys() == {"input_ids", "attention_mask"}
    rows = [row[mask == 1].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert sorted(rows) == sorted(ids(line)[:12] for line in lines)
    assert batch["input_ids"].shape == (3, 12)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_a_tokenizer_that_is_missing_or_makes_other_inputs(folder, tmp_path):
    (tmp_path / "a.txt").write_text("the cat")
    spec = str(tmp_path / "a.txt")
    with pytest.raises(InvalidInput, match=r"need the model's tokenizer, and .*holds none \(tokenizer.json\); save it"):
        load_data(spec, LoadedModel(Encoder(), folder=tmp_path))
    with pytest.raises(InvalidInput, match=r"MODEL is no folder that could hold one; .*give tokens in a file.npz"):
        load_data(spec, LoadedModel(Encoder()))
    with pytest.raises(InvalidInput, match=r"the model takes decoder_input_ids; give these in a file.npz"):
        next(iter(load_data(spec, LoadedModel(Decoder(), folder=folder)).batches))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"the tokenizer of .* cannot be loaded"):
        load_data(spec, LoadedModel(Encoder(), folder=tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InvalidInput, match="is no text in UTF-8"):
        load_data(spec, LoadedModel(Encoder(), folder=folder))
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(InvalidInput, match="holds no sample"):
        load_data(spec, LoadedModel(Encoder(), folder=folder))


def test_a_table_of_texts_with_several_classes_each(folder, tmp_path):
    def read(text, of_model=None, of_data=None):
        (tmp_path / "a.csv").write_text("text,label\n" + text)
        model = LoadedModel(Encoder(), folder=folder, classes=of_model)
        loaded = load_data(str(tmp_path / "a.csv"), model, Reading(task="multilabel", classes=of_data))
        (batch,) = loaded.batches
        pairs = zip(batch["input_ids"], batch["labels"], strict=True)
        return loaded.classes, {tuple(row[row > 0].tolist()): label.tolist() for row, label in pairs}

    wanted = {(2, 3): [1.0, 0.0, 1.0], (2, 4): [0.0, 1.0, 0.0], (3,): [0.0, 0.0, 0.0]}
    assert read("the cat,c; a\nthe dog,b\ncat,\n") == (("a", "b", "c"), wanted)
    assert read("the cat,2|0\nthe dog,1\ncat,\n") == (("0", "1", "2"), wanted)
    assert read("the cat,z;x\nthe dog,y\ncat,\n", ("x", "y", "z")) == (("x", "y", "z"), wanted)
    assert read("the cat,0;2\nthe dog,1\ncat,\n", ("x", "y", "z")) == (("x", "y", "z"), wanted)
    assert read("the cat,a\n", of_data=("b", "a"))[1] == {(2, 3): [0.0, 1.0]}
    with pytest.raises(InvalidInput, match=r"label 'd' is no class of the model; there are x, y, z; name it so, or by"):
        read("the cat,x;d\n", ("x", "y", "z"))
    with pytest.raises(InvalidInput, match="no label names a class; write them as in cat;dog"):
        read("the cat,;\n")


TABLES = {
    "header of known names": ("id,label,text\n1,good,the cat\n2,bad,the dog\n3,good,cat\n4,bad,dog\n", "a.csv"),
    "no header": ("the cat,good\nthe dog,bad\ncat,good\ndog,bad\n", "a.csv"),
    "other names": ("words,mood\nthe cat,good\nthe dog,bad\ncat,good\ndog,bad\n", "a.csv"),
    "tabs": ("text\tlabel\nthe cat\tgood\nthe dog\tbad\ncat\tgood\ndog\tbad\n", "a.tsv"),
    "semicolons": ("text;label\nthe cat;good\nthe dog;bad\ncat;good\ndog;bad\n", "a.csv"),
    "quoted": ('"text","label"\n"the cat","good"\n\n"the dog","bad"\n"cat","good"\n"dog","bad"\n', "a.csv"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_texts(kind, folder, tmp_path):
    text, name = TABLES[kind]
    (tmp_path / name).write_text(text)
    loaded = load_data(str(tmp_path / name), LoadedModel(Encoder(), folder=folder))
    (batch,) = loaded.batches
    assert loaded.classes == ("bad", "good")
    rows = {
        tuple(row[row > 0].tolist()): int(label) for row, label in zip(batch["input_ids"], batch["labels"], strict=True)
    }
    assert rows == {(2, 3): 1, (2, 4): 0, (3,): 1, (4,): 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row"),
        ("text,label\n", "holds no row but its header"),
        ("text,label\nthe cat,1\nthe, dog,0\n", "line 3 has 3 columns, the first 2; quote what holds commas"),
        ("a,b,c\n1,2,3\n", r"3 columns without known names \(a, b, c\); call them in the first row: path or text"),
        ("label\n1\n", r"has labels alone \(label\)"),
        ('text,label\n"the cat,1\n', "is no table in UTF-8 that can be read .unexpected end of data"),
        ("text,label\nthe cat,1\ndog,\n", "line 3 has no label; write one, or leave the line out"),
        ("path,label\nno.png,1\n", "line 2: no file 'no.png' in .*; paths count from the folder of the table"),
    ],
)
def test_bad_tables(text, message, folder, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        load_data(str(tmp_path / "a.csv"), LoadedModel(Encoder(), folder=folder))


def test_a_table_of_regression(folder, tmp_path):
    (tmp_path / "a.csv").write_text("text,score,label\nthe cat,x,0.5\ndog,x,2\n")
    (batch,) = load_data(
        str(tmp_path / "a.csv"), LoadedModel(Encoder(), folder=folder), Reading(task="regression")
    ).batches
    assert sorted(batch["labels"].tolist()) == [[0.5], [2.0]]


@pytest.mark.parametrize("header", ["path,label\n", "where,what\n", ""])
def test_a_table_of_pictures(header, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number in range(6):
        image.new("RGB", (4, 4), (number * 10, 0, 0)).save(tmp_path / f"{number}.png")
    text = header + "".join(f"{number}.png,{'odd' if number % 2 else 'even'}\n" for number in range(6))
    (tmp_path / "a.csv").write_text(text)
    loaded = load_data(str(tmp_path / "a.csv"), LoadedModel(nn.Conv2d(3, 2, 1)))
    ((images, labels),) = loaded.batches
    assert loaded.classes == ("even", "odd")
    assert torch.equal((images[:, 0, 0, 0] * 25.5).round().long() % 2, labels)
