"""Images: where arrays have their channels, and folders of files with all faults at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyrovae.data import as_dataset, default_likelihood, load
from pyrovae.errors import InputError
from pyrovae.runs import named_rows

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (30, 6, 7, 3)).astype("uint8")  # channels last


def folder(place: Path, images: np.ndarray, ending: str = "png") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(place / f"{number:02d}.{ending}")
    return place


def test_channels_first_and_last_are_the_same_data(tmp_path: Path) -> None:
    first = np.ascontiguousarray(np.moveaxis(PICTURES, -1, 1))
    np.save(tmp_path / "last.npy", PICTURES)
    np.save(tmp_path / "first.npy", first)
    data = [load(tmp_path / f"{axis}.npy") for axis in ("first", "last")]
    for axis, one in zip(("first", "last"), data, strict=True):
        assert one.channels == axis and one.event_shape == (3, 6, 7) and one.image
        assert f"channels: the {axis} axis of a row, of 3" in one.note
        assert torch.equal(one.values, torch.from_numpy(first).float())
    assert torch.equal(as_dataset(PICTURES).values, data[0].values)
    assert torch.equal(as_dataset(torch.from_numpy(first)).values, data[0].values)


@pytest.mark.parametrize("shape", [(3, 6, 3), (1, 8, 1), (3, 3, 3), (1, 5, 3)])
def test_shapes_that_may_be_either_are_refused_and_the_option_tells(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    array = RANDOM.normal(size=(30, *shape))
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=r"got both in a.npy, rows of shape .*channels='first'"):
        load(tmp_path / "a.npy")
    assert load(tmp_path / "a.npy", channels="first").event_shape == shape
    assert load(tmp_path / "a.npy", channels="last").event_shape == (shape[2], *shape[:2])


def test_other_shapes_have_channels_only_if_the_option_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RANDOM.normal(size=(30, 6, 7, 5)))
    assert load(tmp_path / "a.npy").event_shape == (6, 7, 5)
    assert load(tmp_path / "a.npy").channels is None
    assert load(tmp_path / "a.npy", channels="last").event_shape == (5, 6, 7)
    np.save(tmp_path / "b.npy", RANDOM.normal(size=(30, 6, 7)))
    with pytest.raises(InputError, match=r"axis of channels in b.npy; got rows of shape \(6, 7\)"):
        load(tmp_path / "b.npy", channels="last")
    with pytest.raises(InputError, match="expected channels 'first' or 'last'; got 'end'"):
        load(tmp_path / "a.npy", channels="end")


@pytest.mark.parametrize(
    ("values", "likelihood"),
    [
        (PICTURES, "logistic"),
        (PICTURES.astype("float32"), "logistic"),
        (PICTURES / 255, "normal"),
        (PICTURES > 100, "bernoulli"),
        (PICTURES.astype("int64") * 4, "normal"),
        (PICTURES[..., 0], "normal"),  # the rows may be matrices of counts as well
    ],
)
def test_levels_of_colour_are_known_by_their_numbers(
    tmp_path: Path, values: np.ndarray, likelihood: str
) -> None:
    np.save(tmp_path / "a.npy", values)
    data = load(tmp_path / "a.npy")
    assert default_likelihood(data) == likelihood
    assert ("levels 0–255" in data.note) == (likelihood == "logistic")


def test_a_folder_and_a_pattern_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    place = folder(tmp_path / "photos", PICTURES)
    (place / "notes.txt").write_text("not an image", encoding="utf-8")
    data = load(place)
    assert torch.equal(data.values, as_dataset(PICTURES).values)
    assert data.ids is not None and data.ids[:2] == ("00.png", "01.png")
    assert (data.channels, data.labels, data.note) == ("last", None, "30 files, levels 0–255")
    some = load(str(place / "[12]*.png"))
    assert len(some) == 20 and torch.equal(some.values, data.values[10:])
    part = data.rows(torch.tensor([3, 1]))
    assert part.ids == ("03.png", "01.png")


def test_grey_and_black_and_white_images_have_no_channels(tmp_path: Path) -> None:
    grey = load(folder(tmp_path / "grey", PICTURES[..., 0]))
    assert grey.event_shape == (6, 7) and default_likelihood(grey) == "logistic"
    assert np.array_equal(grey.values.numpy(), PICTURES[..., 0])
    binary = load(folder(tmp_path / "binary", PICTURES[..., 0] > 100))
    assert default_likelihood(binary) == "bernoulli"
    assert np.array_equal(binary.values.numpy(), PICTURES[..., 0] > 100)


def test_folders_in_a_folder_are_labels(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        folder(tmp_path / "pets" / name, PICTURES[number * 12 : number * 12 + 12])
    data = load(tmp_path / "pets")
    assert data.labels is not None and data.labels.tolist() == [0] * 12 + [1] * 12
    assert torch.equal(data.values, as_dataset(PICTURES[:24]).values)
    assert data.ids is not None and data.ids[12] == "dog/00.png"
    assert "labelled by their folders cat, dog" in data.note
    assert named_rows(data)["label"].tolist() == ["cat"] * 12 + ["dog"] * 12
    assert data.label_names == ("cat", "dog") == data.rows(torch.arange(3)).label_names


def test_all_faults_of_a_folder_are_listed_at_once(tmp_path: Path) -> None:
    place = folder(tmp_path / "photos", PICTURES)
    Image.new("RGBA", (7, 6)).save(place / "alpha.png")
    Image.new("RGB", (9, 6)).save(place / "wide.jpg")
    Image.new("L", (7, 6)).save(place / "grey.png")
    (place / "words.png").write_text("not an image", encoding="utf-8")
    content = (place / "00.png").read_bytes()
    (place / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError) as caught:
        load(place)
    said = str(caught.value)
    faults = (
        "alpha.png (6 × 7 RGBA)",
        "wide.jpg (6 × 9 RGB)",
        "grey.png (6 × 7 L)",
        "words.png (unr",
    )
    assert all(fault in said for fault in (*faults, "cut.png (unreadable", "most are 6 × 7 RGB"))
    assert "00.png" not in said and said.count("\n") == 0
    (place / "words.png").unlink()
    (place / "cut.png").unlink()
    for file in ("alpha.png", "wide.jpg", "grey.png"):  # the remedy, in pillow's words
        with Image.open(place / file) as image:
            converted = image.convert("RGB").resize((7, 6))
        converted.save(place / file)
    assert len(load(place)) == 33


def test_a_folder_of_one_mode_that_is_none_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"and 10 more\. Convert .*image\.convert\('RGB'\)"):
        load(folder(tmp_path / "alpha", np.zeros((30, 6, 7, 4), dtype="uint8")))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images ending in \.png.*got a directory without any"):
        load(tmp_path)
    with pytest.raises(InputError, match="got a pattern without any"):
        load(str(tmp_path / "*.png"))
