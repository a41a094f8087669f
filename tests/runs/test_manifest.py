"""``run.toml`` comes back as it was, and one that is damaged or hostile is refused in words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrovae.data import Dataset
from pyrovae.errors import InputError
from pyrovae.runs import digest_of_data
from pyrovae.runs.manifest import NAME, read, to_toml
from pyrovae.runs.recipe import Recipe, build, rebuild

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = TEXT | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False)


@given(st.dictionaries(st.sampled_from("abcde"), VALUES | st.lists(TEXT) | st.lists(st.integers())))
def test_every_value_comes_back(entries: dict[str, Any]) -> None:
    back = tomllib.loads(to_toml("pyrovae analyze 'it''s'", {"options": entries}))
    assert back["options"] == entries
    assert back["command"] == "pyrovae analyze 'it''s'"


def test_bytes_that_are_no_text_are_spelled_out() -> None:
    assert tomllib.loads(to_toml("x", {"data": {"name": "o\udcff"}}))["data"]["name"] == r"o\udcff"


WHOLE = to_toml(
    "pyrovae analyze",
    {
        "data": {"name": "x", "rows": 30, "shape": [3], "digest": "0"},
        "options": {"seed": 0},
        "model": {"kind": "vae"},
        "samples": {"source": "ex-post", "recommended": ""},
        "files": {},
        "versions": {},
    },
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "without run.toml"),
        ("format = ", "run.toml as pyrovae has written it"),
        ("a = " + "[" * 5000, "run.toml as pyrovae has written it"),
        (WHOLE.replace("format = 1", "format = 7"), "format is 7, not 1"),
        (WHOLE.replace("format = 1", ""), "format is None"),
        (WHOLE.replace("[data]", "[dat]"), r"no table \[data\]"),
        (WHOLE.replace("rows = 30", 'rows = "30"'), r"rows in \[data\] is '30'"),
        (WHOLE.replace("seed = 0", "seed = true"), "seed in .* is True"),
        (WHOLE.replace("[files]", 'files = "x"\n[others]'), r"no table \[files\]"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / NAME).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read(tmp_path)
    with pytest.raises(InputError, match=r"without run\.toml"):
        read(tmp_path / "none")


def test_the_digest_is_that_of_numbers_shape_and_names() -> None:
    rows = torch.arange(12.0).view(4, 3)
    data = Dataset("x", rows, columns=("a", "b", "c"))
    others = [
        Dataset("x", rows.clone().index_fill(0, torch.tensor([3]), 0.0), columns=("a", "b", "c")),
        Dataset("x", rows, columns=("a", "b", "d")),
        Dataset("x", rows.view(3, 4)),
        Dataset("x", rows.float(), columns=("a", "b", "c")),
    ]
    digests = {digest_of_data(other) for other in (data, *others)}
    assert len(digests) == len(others) + 1
    named = Dataset("another name", rows, ("a", "b", "c"), torch.ones(4).long())
    assert digest_of_data(named) == digest_of_data(data)


RECIPE = {
    "kind": "vae", "likelihood": "normal", "event_shape": [3], "latent": 2, "hidden": [4],
    "prior": "standard", "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latent", -1), ("latent", "2"), ("latent", True), ("hidden", [4, -1]), ("hidden", 4),
        ("event_shape", ["3"]), ("grey", 1), ("prior", ["standard"]), ("__class__", "x"),
        ("latent", 1 << 63),
    ],
)  # fmt: skip
def test_a_recipe_of_other_kinds_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match="expected the description of a VAE"):
        Recipe.from_table({**RECIPE, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latent", 10**12), ("hidden", [10**9, 10**9]), ("event_shape", [10**15]), ("latent", 3),
        ("likelihood", "bernoulli"), ("likelihood", "evil"), ("prior", "flow"), ("hidden", []),
    ],
)  # fmt: skip
def test_no_size_is_believed_before_the_parameters_have_shown_it(name: str, value: object) -> None:
    """A recipe that asks for all the memory there is gets none of it."""
    recipe = Recipe.from_table(RECIPE)
    state = build(recipe, torch.randn(20, 3)).state_dict()
    with pytest.raises(InputError):
        rebuild(Recipe.from_table({**RECIPE, name: value}), state, lambda: torch.randn(20, 3))
