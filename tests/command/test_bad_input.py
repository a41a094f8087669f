"""What can't be measured well in a pair stands in the report and in the terminal."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pyrovae.command.analysis
import pyrovae.diagnostics.guide_check
from pyrovae.command.cli import BAD_INPUT, OK, main
from pyrovae.diagnostics.effort import Effort

PAIRS = """
import pyro, torch
import pyro.distributions as dist

def model(x, root=0.0):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = torch.cat([z, z.sum(-1, keepdim=True)], -1)
        pyro.sample("x", dist.Normal(loc + root * (0 * loc).sqrt(), 0.3).to_event(1), obs=x)

def guide(x, family, units=2):
    with pyro.plate("data", len(x)):
        pyro.sample("z", family(x[:, :1].expand(-1, units)).to_event(1))

def box(x):
    return dist.Uniform(x.clamp(-1, 1) - 0.3, x.clamp(-1, 1) + 0.3)

def narrow(x):
    return dist.Normal(x, 0.01)

def normal(x):
    return dist.Normal(x, 1.0)

def support(data):
    return model, lambda x: guide(x, box)

def weights(data):
    return model, lambda x: guide(x, narrow)

def stuck(data):  # the gradient of a root at 0 is not a number
    return (lambda x: model(x, 1.0)), lambda x: guide(x, normal)

def shape(data):
    return model, lambda x: guide(x, normal, 3)
"""

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(80, 2))
    rows = np.concatenate([z, z.sum(1, keepdims=True)], 1)
    np.save(tmp_path / "data.npy", rows + 0.3 * generator.normal(size=rows.shape))
    (tmp_path / "bad.py").write_text(PAIRS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tiny = Effort(64, 8, 60, 2, 30, 4, 40, simulations=100, gap_rows=0, nuts_rows=1)
    original = pyrovae.command.analysis.diagnose
    monkeypatch.setattr(
        pyrovae.command.analysis, "diagnose", lambda *a, **k: original(*a, **(k | {"effort": tiny}))
    )
    for name, value in {"NUTS_DRAWS": 6, "NUTS_WARMUP": 6, "NUTS_CHAINS": 2}.items():
        monkeypatch.setattr(pyrovae.diagnostics.guide_check, name, value)
    yield tmp_path
    sys.modules.pop("bad", None)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("weights", "data points k̂ > 0."),
        ("stuck", "expected NUTS to move; got 2 of 2 chains"),
    ],
)
def test_concerns_stand_in_report_and_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], pair: str, words: str
) -> None:
    assert main(["analyze", "data.npy", "--pair", f"bad:{pair}", "--no-fit"]) == OK
    page = html.unescape((folder / "pyrovae-report" / "report.html").read_text(encoding="utf-8"))
    box = page.split('<aside class="caution"')[1].split("</aside>")[0]
    for text in (box, capsys.readouterr().out):
        assert words.lower() in " ".join(text.split()).lower()
        assert "Take more draws." not in text and "method=" not in text


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("support", "expected a guide whose support is the prior's; got one that leaves out"),
        ("shape", "Give guide and model as many latent units"),
    ],
)
def test_a_pair_that_cannot_be_measured_is_one_line_of_error(
    folder: Path, capsys: pytest.CaptureFixture[str], pair: str, words: str
) -> None:
    assert main(["analyze", "data.npy", "--pair", f"bad:{pair}", "--no-fit"]) == BAD_INPUT
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("pyrovae: expected") and words in line
