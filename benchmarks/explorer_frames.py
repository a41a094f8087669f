"""Size of the explorer's page and frames per second of panning, at many codes.

The codes are made up; the decoder is an untrained one of images of 28 × 28. Chromium draws in
software here, so that a machine with a graphics processor shows more frames.

    python benchmarks/explorer_frames.py --rows 60000 --units 10
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch

import pyrovae as pv
from pyrovae.explorer.arrays import pack, quantise, whole
from pyrovae.explorer.decoders import program
from pyrovae.explorer.densities import as_normals
from pyrovae.explorer.page import document
from pyrovae.explorer.planes import principal_components

FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# Turns of the wheel at two places: in at the right and out at the left, so that the map moves.
FRAMES = """async () => {
  const over = document.getElementById("over");
  const { left, top, width, height } = over.getBoundingClientRect();
  const start = performance.now();
  for (let i = 0; i < 120; i++) {
    const [deltaY, share] = i % 2 ? [-22, 0.6] : [20, 0.4];
    const [clientX, clientY] = [left + share * width, top + height / 2];
    over.dispatchEvent(new WheelEvent("wheel", { deltaY, clientX, clientY, cancelable: true }));
    await new Promise(requestAnimationFrame);
  }
  return 120000 / (performance.now() - start);
}"""


def contents(rows: int, units: int) -> dict[str, object]:
    """A page's contents for codes around twenty places."""
    torch.manual_seed(0)
    centres = 1.5 * torch.randn(20, units)
    loc = centres[torch.arange(rows) % 20] + 0.4 * torch.randn(rows, units)
    scale = 0.1 + 0.1 * torch.rand(rows, units)
    agg = pv.AggregatedPosterior(dist.Normal(loc, scale).to_event(1))
    held = as_normals(agg, seed=0)
    prior = as_normals(pv.StandardNormal(units)(), seed=0)
    values = torch.randn(rows).numpy()
    numbers = [
        {"name": f"number {n}", "kind": "number", "values": quantise(values, 2), "words": ""}
        for n in range(5)
    ]
    label = {"name": "label", "kind": "class", "values": whole(np.arange(rows) % 20 % 10)}
    return {
        "name": "made up", "train": rows, "loc": quantise(loc, 3),
        "log_scale": quantise(scale.log(), 2), "log_weight": None,
        "rows": pack(np.arange(rows, dtype=np.int32)), "ids": None,
        "components": principal_components(loc),
        "map": {"places": quantise(loc[:, :2], 2), "words": "the first two units"},
        "densities": {"q_agg": held, "prior": prior, "ex-post": held},
        "prior_draws": pack(torch.randn(1000, units).numpy()), "inside": pack(loc[:1000].numpy()),
        "recommended": None, "palette": pv.plots.LABEL_COLOURS,
        "colours": [label | {"names": [str(n) for n in range(10)]}, *numbers],
        "decoder": program(pv.mlp_decoder(units, (28, 28))),
        "row": {
            "shape": [28, 28], "image": True, "low": 0.0, "high": 1.0, "columns": [], "mean": [],
            "spread": [], "values": None,
        },
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--units", type=int, default=10)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "explorer.html"
        path.write_text(document(contents(options.rows, options.units)), encoding="utf-8")
        print(
            f"{options.rows:,} codes of {options.units} units: {path.stat().st_size / 1e6:.2f} MB"
        )
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        print(f"{page.evaluate(FRAMES):.0f} frames a second of pan and zoom, drawn in software")
        move = "performance.now()"
        before = page.evaluate(move)
        for _ in range(10):
            page.press("#over", "ArrowRight")
        print(f"{(page.evaluate(move) - before) / 10:.0f} ms to move the point")
        browser.close()


if __name__ == "__main__":
    main()
