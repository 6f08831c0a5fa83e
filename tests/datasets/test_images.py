"""Folders and zips of pictures, against Pillow and numpy by hand."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mixbit.core.errors import InvalidInput
from mixbit.datasets.load import Reading
from mixbit.models.load import LoadedModel
from tests.datasets.given import load_data

COLOURED = LoadedModel(nn.Conv2d(3, 2, 1))
GREY = LoadedModel(nn.Conv2d(1, 2, 1))


def draw(size=(6, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures of two classes, sorted by class."""
    root = tmp_path / "pictures"
    for number in range(20):
        place = root / ("cat" if number < 10 else "dog") / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(seed=number)).save(place)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_text("no picture")
    return root


def one(path, model=COLOURED, **reading):
    """The only picture of a flat folder, as the model gets it."""
    (batch,) = load_data(str(path), model, Reading(**reading)).batches
    assert isinstance(batch, torch.Tensor), "pictures that are in no folder of a class have no labels"
    return batch[0]


def all_labels(loaded):
    return torch.cat([labels for _, labels in loaded.batches]).tolist()


def test_sub_folders_are_classes_and_the_order_is_mixed_and_the_same(folder):
    loaded = load_data(str(folder), COLOURED, Reading(batch_size=8))
    passes = [list(loaded.batches) for _ in range(2)]
    assert [len(images) for images, _ in passes[0]] == [8, 8, 4]
    label_of = {}
    for (images, labels), (again, same) in zip(*passes, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
        label_of |= {int((image * 255).round().sum()): int(label) for image, label in zip(images, labels, strict=True)}
    assert loaded.classes == ("cat", "dog")
    assert {int(draw(seed=number).sum()): int(number >= 10) for number in range(20)} == label_of
    assert 0 < sum(all_labels(loaded)[:8]) < 8, "the first samples of a folder that is sorted by class hold both"
    assert all_labels(load_data(str(folder), COLOURED, Reading(seed=1))) != all_labels(loaded)


def test_to_train_on_every_epoch_has_an_order_of_its_own(folder):
    loaded = load_data(str(folder), COLOURED, Reading(every_epoch=True))
    orders = [all_labels(loaded) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert all_labels(load_data(str(folder), COLOURED, Reading(every_epoch=True))) == orders[0]


@pytest.mark.parametrize("top", ["", "pictures/"])
def test_a_zip_gives_what_its_folder_gives(top, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + file.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/._00.png", "no picture")
    loaded = load_data(str(tmp_path / "a.zip"), COLOURED)
    assert loaded.classes == ("cat", "dog")
    for (images, labels), (same, too) in zip(load_data(str(folder), COLOURED).batches, loaded.batches, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, too)


def test_pixels_are_resized_and_normalised(tmp_path):
    Image.fromarray(draw((40, 20))).save(tmp_path / "a.png")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    got = one(tmp_path, image_size=(10, 16), mean=mean, std=std)
    resized = Image.fromarray(draw((40, 20))).resize((16, 10), Image.Resampling.BILINEAR)
    wanted = (np.asarray(resized, np.float64) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(got.numpy(), wanted.transpose(2, 0, 1), atol=1e-5)


def grey(x):
    return np.repeat(x[..., :1], 3, 2)


def with_palette(x):
    return Image.fromarray(x).quantize(256, dither=Image.Dither.NONE)


#: Kind -> how to make such a picture of pixels, and the colours that it should give.
KINDS = {
    "colours": (Image.fromarray, lambda x: x),
    "opacity": (lambda x: Image.fromarray(np.dstack([x, x[..., :1]])), lambda x: x),
    "grey": (lambda x: Image.fromarray(x[..., 0]), grey),
    "grey, opacity": (lambda x: Image.merge("LA", [Image.fromarray(x[..., i]) for i in (0, 1)]), grey),
    "grey of 16 bits": (lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257), grey),
    "palette": (with_palette, lambda x: np.asarray(with_palette(x).convert("RGB"))),
    "one bit": (lambda x: Image.fromarray(x[..., 0] > 127), lambda x: grey((x > 127).astype(np.uint8) * 255)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_becomes_three_channels(kind, tmp_path):
    make, wanted = KINDS[kind]
    make(draw()).save(tmp_path / "a.png")
    np.testing.assert_allclose(one(tmp_path).numpy() * 255, wanted(draw()).transpose(2, 0, 1), atol=1e-4)


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    with_palette(draw()).save(tmp_path / "a.png", transparency=bytes([0] * 256))
    wanted = np.asarray(with_palette(draw()).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_allclose(one(tmp_path).numpy() * 255, wanted, atol=1e-4)


def test_a_picture_of_colours_becomes_grey_for_a_model_of_one_channel(tmp_path):
    Image.fromarray(draw()).save(tmp_path / "a.png")
    wanted = np.asarray(Image.fromarray(draw()).convert("L"))[None]
    np.testing.assert_allclose(one(tmp_path, GREY).numpy() * 255, wanted, atol=1e-4)
    example = LoadedModel(GREY.module, example=torch.zeros(2, 1, 4, 6))
    with pytest.raises(InvalidInput, match="the model takes 1 channels; give --mean and --std one number each"):
        load_data(str(tmp_path), example, Reading(mean=(0.1, 0.2, 0.3)))


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row of the file is the right side
    Image.fromarray(draw()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(one(tmp_path).numpy() * 255, np.rot90(draw(), -1).transpose(2, 0, 1), atol=1e-4)


def test_the_example_of_the_model_says_name_size_and_type(tmp_path):
    Image.fromarray(draw((40, 20))).save(tmp_path / "a.png")
    resized = np.asarray(Image.fromarray(draw((40, 20))).resize((8, 5), Image.Resampling.BILINEAR))
    named = LoadedModel(COLOURED.module, example={"picture": torch.zeros(2, 3, 5, 8)})
    (batch,) = load_data(str(tmp_path), named).batches
    np.testing.assert_allclose(batch["picture"][0].numpy() * 255, resized.transpose(2, 0, 1), atol=1e-4)
    last = LoadedModel(COLOURED.module, example=torch.zeros(2, 5, 8, 3, dtype=torch.uint8))
    assert np.array_equal(one(tmp_path, last).numpy(), resized)
    assert one(tmp_path, last).dtype == torch.uint8
    with pytest.raises(InvalidInput, match="takes pixels of 0 to 255; leave out --mean and --std"):
        load_data(str(tmp_path), last, Reading(mean=(0.5,)))
    two = LoadedModel(COLOURED.module, example={"a": torch.zeros(2, 3, 5, 8), "b": torch.zeros(2, 4)})
    with pytest.raises(
        InvalidInput, match=r"pictures are one input of four dimensions, the model takes a .*b \[2, 4\]"
    ):
        load_data(str(tmp_path), two)


def test_a_broken_picture_is_named_and_left_out_only_if_asked(folder, capsys):
    whole = (folder / "cat" / "03.png").read_bytes()
    (folder / "cat" / "03.png").write_bytes(whole[:60])
    (folder / "dog" / "bad.jpg").write_text("no picture")
    named = r"(cat/03.png|dog/bad.jpg) cannot be read .*; remove it, or leave out such files by --skip-broken"
    with pytest.raises(InvalidInput, match=named):
        list(load_data(str(folder), COLOURED).batches)
    with pytest.raises(InvalidInput, match=named):
        load_data(str(folder), COLOURED, Reading(every_epoch=True))
    loaded = load_data(str(folder), COLOURED, Reading(skip_broken=True))
    assert sorted(all_labels(loaded)) == sorted(all_labels(loaded)) == [0] * 9 + [1] * 10
    said = capsys.readouterr().err
    assert said.count("cat/03.png cannot be read (image file is truncated); left out") == 1
    assert said.count("dog/bad.jpg cannot be read (no picture); left out") == 1


def test_pictures_all_of_which_are_broken(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InvalidInput, match="no sample can be read"):
        list(load_data(str(tmp_path), COLOURED, Reading(skip_broken=True)).batches)


def test_two_sizes_need_one(folder):
    Image.fromarray(draw((9, 9))).save(folder / "cat" / "large.png")
    with pytest.raises(InvalidInput, match=r"gives \[3, .* \[3, .*; give all one size by --image-size HxW"):
        list(load_data(str(folder), COLOURED).batches)
    sizes = {images.shape[1:] for images, _ in load_data(str(folder), COLOURED, Reading(image_size=(4, 6))).batches}
    assert sizes == {(3, 4, 6)}


def test_names_of_classes_stand_in_the_order_of_the_model_or_of_the_first_data(folder):
    swapped = LoadedModel(COLOURED.module, classes=("dog", "cow", "cat"))
    assert sorted(all_labels(load_data(str(folder), swapped))) == [0] * 10 + [2] * 10
    (folder / "cat").rename(folder / "dove")
    loaded = load_data(str(folder), COLOURED, Reading(classes=("eel", "dog", "dove")))
    assert loaded.classes == ("eel", "dog", "dove")
    assert set(all_labels(loaded)) == {1, 2}
    with pytest.raises(InvalidInput, match=r"label 'dove' is no class of the model.*there are dog, cow, cat"):
        load_data(str(folder), swapped)


def test_folders_named_by_numbers_are_these_numbers(folder):
    (folder / "cat").rename(folder / "10")
    (folder / "dog").rename(folder / "9")
    assert sorted(all_labels(load_data(str(folder), COLOURED))) == [9] * 10 + [10] * 10


def test_what_holds_no_pictures_or_two_kinds(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"holds no picture; known are files that end with \.bmp"):
        load_data(str(tmp_path / "empty"), COLOURED)
    (tmp_path / "a.zip").write_text("no archive")
    with pytest.raises(InvalidInput, match="no zip file, or part of one"):
        load_data(str(tmp_path / "a.zip"), COLOURED)
    Image.fromarray(draw()).save(folder / "loose.png")
    with pytest.raises(InvalidInput, match=r"loose.png lies beside folders"):
        load_data(str(folder), COLOURED)


def test_links_in_a_circle_end(folder):
    (folder / "cat" / "up").symlink_to(folder)
    assert sum(len(images) for images, _ in load_data(str(folder), COLOURED).batches) == 20


def test_the_processor_of_the_model_makes_pictures_as_it_does_alone(tmp_path):
    transformers = pytest.importorskip("transformers")
    processor = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "net")
    (tmp_path / "data").mkdir()
    Image.fromarray(draw((40, 20))).save(tmp_path / "data" / "a.png")
    model = LoadedModel(COLOURED.module, folder=tmp_path / "net", example={"pixel_values": torch.zeros(2, 3, 8, 8)})
    loaded = load_data(str(tmp_path / "data"), model)
    (batch,) = loaded.batches
    wanted = processor(images=[Image.fromarray(draw((40, 20)))], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], wanted)
    assert "ViTImageProcessorPil" in loaded.preprocessing
    (batch,) = load_data(str(tmp_path / "data"), model, Reading(image_size=(4, 4))).batches
    assert batch["pixel_values"].shape == (1, 3, 4, 4), "options replace the processor"
    one_channel = LoadedModel(GREY.module, folder=tmp_path / "net", example=torch.zeros(2, 1, 8, 8))
    with pytest.raises(InvalidInput, match="makes 3 channels, the model takes 1"):
        list(load_data(str(tmp_path / "data"), one_channel).batches)


@pytest.mark.parametrize("zipped", [False, True])
def test_an_empty_folder_is_a_class_without_pictures(zipped, tmp_path):
    for name in ("ant", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(draw()).save(tmp_path / "data" / name / "a.png")
    (tmp_path / "data" / "bee").mkdir()
    (tmp_path / "data" / ".hidden").mkdir()
    path = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path, "data") if zipped else tmp_path / "data"
    loaded = load_data(str(path), COLOURED, Reading(image_size=(8, 8)))
    assert loaded.classes == ("ant", "bee", "cat")
    assert sorted(all_labels(loaded)) == [0, 2]


@pytest.mark.parametrize("names", [("nan", "inf"), ("1_0", "2_0"), ("1", "b")])
def test_folders_whose_names_python_takes_for_numbers_are_classes(names, tmp_path):
    for name in names:
        (tmp_path / name).mkdir()
        Image.fromarray(draw()).save(tmp_path / name / "a.png")
    assert load_data(str(tmp_path), COLOURED, Reading(image_size=(8, 8))).classes == tuple(sorted(names))


def test_grey_floats_are_named_and_can_be_left_out(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(draw()).save(tmp_path / "a.png")
    with pytest.raises(InvalidInput, match=r"float.tif cannot be read .grey in 32-bit floats"):
        list(load_data(str(tmp_path), COLOURED).batches)
    (batch,) = load_data(str(tmp_path), COLOURED, Reading(skip_broken=True)).batches
    assert len(batch) == 1


@pytest.mark.parametrize(("option", "value"), [("mean", (float("nan"),)), ("std", (float("inf"),))])
def test_means_and_deviations_are_finite(option, value, folder):
    with pytest.raises(InvalidInput, match=f"--{option} .*finite numbers"):
        load_data(str(folder), COLOURED, Reading(**{option: value}))
