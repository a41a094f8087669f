"""The explorer in a browser without network: what it computes is what torch computes."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.command.analysis import AnalysisOptions, analyze
from pyrovae.data import Dataset, load
from pyrovae.diagnostics.effort import Effort
from pyrovae.explorer.arrays import quantise
from pyrovae.explorer.contents import CENTRES, _moments, _numbers, check, contents
from pyrovae.explorer.decoders import program
from pyrovae.explorer.densities import as_normals
from pyrovae.explorer.page import document
from pyrovae.models import BesideLinear, MixedDecoder, gated_mlp, mlp
from pyrovae.runs import Run

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:For .* k̂"),  # the pair has hardly been trained
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]

SOURCE = Path(pv.__file__).parent / "explorer" / "source"
TINY = Effort(
    64, 24, 60, 2, 30, 4, 40, simulations=100, gap_rows=0, nuts_rows=0, method="importance"
)
FLAGS = (
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
PIXELS, SHARES = 1e-4, 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        digits = load("digits")
        part = digits.rows(torch.arange(300))
        options = AnalysisOptions(
            out=tmp_path_factory.mktemp("explorer") / "run", latent=4, hidden=(32,), epochs=5,
            progress=False, effort=TINY, source=None,
        )  # fmt: skip
        return analyze(part, options).saved
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def written(run: Run) -> Path:
    return pv.explore(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium here to open the explorer in: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file with the network off; in the end nothing was asked for and nothing failed."""
    said: list[str] = []
    contexts = []

    def opened(path: Path, **options: Any) -> Any:
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:", "blob:"))
                else said.append(request.url)
            ),
        )  # fmt: skip
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def drag(page: Any, *places: tuple[float, float]) -> None:
    """Over the map, places as shares of its width and height."""
    box = page.locator("#over").bounding_box()
    spots = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*spots[0])
    page.mouse.down()
    for spot in spots[1:]:
        page.mouse.move(*spot, steps=3)
    page.mouse.up()


def code(page: Any) -> torch.Tensor:
    return torch.tensor(page.evaluate("Array.from(explorer.state.z)"), dtype=torch.float64)


def test_a_point_decodes_as_torch_decodes_it(
    open_page: Callable[..., Any], written: Path, run: Run
) -> None:
    page = open_page(written)
    before = page.inner_text("#said")
    drag(page, (0.4, 0.6))
    z = code(page)
    assert page.inner_text("#said") != before
    decoded = page.evaluate("explorer.decode(explorer.state.z)")
    expected = run.decode(z.float()[None]).mean.flatten().double()
    top = max(1.0, float(expected.abs().max()))  # the digits' levels, 0 to 1 or to 16
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=PIXELS * top)
    shares = torch.tensor(page.evaluate("explorer.responsibilities(explorer.state.z)"))
    exact = run.aggregated.responsibilities(z.float()[None], top=run.aggregated.size)
    of_all = torch.zeros(run.aggregated.size, dtype=torch.float64)
    of_all[exact.index[0]] = exact.weight[0].double()
    np.testing.assert_allclose(shares, of_all, rtol=0, atol=SHARES)
    for name, density in {"q_agg": run.aggregated, "prior": run.diagnosis.prior}.items():
        found = page.evaluate(f"explorer.logProb({name!r}, explorer.state.z)")
        assert found == pytest.approx(float(density.log_prob(z.float()[None])), abs=1e-3)


def test_lines_selections_and_samples_are_shown(
    open_page: Callable[..., Any], written: Path
) -> None:
    page = open_page(written)
    page.check("input[value=line]")
    drag(page, (0.3, 0.5), (0.7, 0.5))
    assert page.locator("#line canvas").count() == 9
    page.check("input[value=lasso]")
    drag(page, (0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99))
    selected = page.evaluate("explorer.state.selected.size")
    assert page.inner_text("#lasso-words").startswith(f"{selected} of ")
    assert sum(
        int(text.split()[0]) for text in page.locator("#lasso-classes td").all_inner_texts()
    ) == selected  # fmt: skip
    with page.expect_download() as saved:
        page.click("#export")
    lines = Path(saved.value.path()).read_text().split()
    assert lines[0] == "row" and len(lines) == selected + 1
    page.click("#sample")
    assert page.locator("#samples canvas").count() == 8
    for name in ("show-prior", "show-ex-post", "show-holes"):
        page.check(f"#{name}")
    assert "99 % of the mass of q_agg" in page.inner_text("#picture-words")
    for place in range(page.locator("#colour option").count()):
        page.select_option("#colour", str(place))
    for view in ("units", "map"):
        page.select_option("#view", view)
    assert "no unit" in page.inner_text("#picture-words")


def test_the_keys_do_what_the_pointer_does(open_page: Callable[..., Any], written: Path) -> None:
    page = open_page(written)
    page.focus("#over")
    z, said = code(page), page.inner_text("#said")
    page.keyboard.press("ArrowRight")
    assert not torch.equal(code(page), z) and page.inner_text("#said") != said
    for key in ("Shift+ArrowUp", "+", "-", "0", "n", "s", "i", "l"):
        page.keyboard.press(key)
    assert page.evaluate("explorer.state.selected.size") == 50
    assert page.locator("#samples canvas").count() == 8


# Turns of the wheel where a frame takes long; returns whether the points' own canvas is put away.
TURNS = """async () => {
  window.requestAnimationFrame = (f) => setTimeout(() => f(performance.now()), 60);
  const over = document.getElementById("over");
  const { left, top, width, height } = over.getBoundingClientRect();
  const [clientX, clientY] = [left + 0.6 * width, top + 0.4 * height];
  for (let i = 0; i < 5; i++) {
    const turn = { deltaY: -40, clientX, clientY, cancelable: true };
    over.dispatchEvent(new WheelEvent("wheel", turn));
    await new Promise(requestAnimationFrame);
  }
  return document.getElementById("points").style.visibility === "hidden";
}"""


def test_a_map_that_was_moved_rests_as_it_is_drawn_at_once(
    open_page: Callable[..., Any], written: Path
) -> None:
    page = open_page(written)
    assert page.evaluate(TURNS)
    page.wait_for_selector("#points:not([style*=hidden])")
    view = page.evaluate("explorer.state.view")
    other = open_page(written)
    assert other.evaluate("explorer.state.view") != view
    other.evaluate(
        "view => { Object.assign(explorer.state.view, view); explorer.drawNow(); }", view
    )
    box = page.locator("#over").bounding_box()
    within = {  # of the edge, which lies between pixels
        "x": math.ceil(box["x"]) + 1, "y": math.ceil(box["y"]) + 1,
        "width": int(box["width"]) - 4, "height": int(box["height"]) - 4,
    }  # fmt: skip
    assert page.screenshot(clip=within) == other.screenshot(clip=within)


def test_a_point_that_leaves_the_map_by_keys_takes_it_along(
    open_page: Callable[..., Any], written: Path
) -> None:
    page = open_page(written)
    page.focus("#over")
    for _ in range(20):
        page.keyboard.press("Shift+ArrowRight")
    x, y = page.evaluate("explorer.toScreen(...explorer.state.mark)")
    box = page.locator("#over").bounding_box()
    assert 0 < x < box["width"] and 0 < y < box["height"]


def heard(page: Any) -> list[dict[str, Any]]:
    """What a screen reader is told, in its order: role, name and properties of each node."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    byid = {node["nodeId"]: node for node in nodes}

    def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not node["ignored"]:
            properties = {p["name"]: p["value"].get("value") for p in node.get("properties", ())}
            name = node.get("name", {}).get("value", "").strip()
            yield properties | {"role": node["role"]["value"], "name": name}
        for child in node.get("childIds", ()):
            yield from walk(byid[child])

    return list(walk(nodes[0]))


@pytest.mark.parametrize("name", ["explorer.html", "report.html"])
def test_a_screen_reader_is_told_what_everything_is(
    open_page: Callable[..., Any], written: Path, name: str
) -> None:
    page = open_page(written.with_name(name))
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    if name == "explorer.html":
        for key in "nlsi":
            page.press("#over", key)
    nodes = heard(page)
    nameless = {"generic", "none", "GenericContainer"}
    for node in nodes:
        if node.get("focusable") or node["role"] in ("image", "img", "Canvas", "region"):
            assert node["name"] and node["role"] not in nameless, node
    levels = [node["level"] for node in nodes if node["role"] == "heading"]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    roles = [node["role"] for node in nodes]
    assert roles.count("main") == 1 and roles.count("banner") == 1
    assert all(node["name"] for node in nodes if node["role"] in ("columnheader", "rowheader"))


@pytest.mark.parametrize("name", ["explorer.html", "report.html"])
def test_the_tabulator_goes_through_the_page_and_out_of_it(
    open_page: Callable[..., Any], written: Path, name: str
) -> None:
    page = open_page(written.with_name(name))
    places: list[int] = []
    for _ in range(200):
        page.keyboard.press("Tab")
        place, seen = page.evaluate(
            """() => {
              const at = document.activeElement, style = getComputedStyle(at);
              const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
              const place = [...document.querySelectorAll("*")].indexOf(at);
              return [at === document.body ? -1 : place, shown];
            }"""
        )
        if place < 0 or place in places[:1]:
            break
        assert seen
        places.append(place)
    else:
        pytest.fail("the focus never leaves the page")
    assert places == sorted(set(places)) and len(places) > 8


def test_what_was_done_is_told_once(open_page: Callable[..., Any], written: Path) -> None:
    page = open_page(written)
    page.focus("#over")
    live = "[aria-live], [role=status]"
    assert page.locator(live).evaluate_all("all => all.map(part => part.id)") == [
        "picture-words", "told", "said",
    ]  # fmt: skip
    assert page.locator(f":is({live}) :is({live})").count() == 0
    told = {
        "l": r"\d+ of \d+ rows are selected\. Most of one label: \d, \d+ \([\d.]+ %\)\.",
        "s": "Eight samples .*",
        "i": "Nine codes from the start to the end of the line.*",
        "+": r"The map shows [\d,]+ of [\d,]+ rows\.",
    }
    for key, words in told.items():
        page.keyboard.press(key)
        assert re.fullmatch(words, page.inner_text("#told").strip()), key
    before = page.text_content("#told")
    page.keyboard.press("s")
    first = page.text_content("#told")
    page.keyboard.press("s")
    assert len({before, first, page.text_content("#told")}) == 3  # heard again
    page.check("#show-prior")
    assert "prior" in page.inner_text("#picture-words")


def test_a_phone_and_a_dark_page_show_it_whole(
    open_page: Callable[..., Any], written: Path
) -> None:
    page = open_page(written, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", paper))) < 120


def mixed() -> torch.nn.Module:
    network = BesideLinear(mlp((3, 8, 6)), 3, 6)
    return MixedDecoder(network, (0, 1, 4), torch.tensor([2.0, 0, 0]), torch.tensor([3.0, 1, 1]))


DECODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "mlp": lambda: pv.mlp_decoder(3, (4, 5), hidden=(16,)),
    "gated": lambda: pv.mlp_decoder(3, (4, 5), hidden=(16,), gated=True),
    "conv": lambda: pv.conv_decoder(3, (9, 7), channels=(6, 5)),
    "conv in colour": lambda: pv.conv_decoder(3, (3, 8, 6), "logistic", channels=(6,)),
    "logistic": lambda: pv.mlp_decoder(3, (4, 5), "logistic", hidden=(16,)),
    "normal": lambda: pv.mlp_decoder(
        3, (5,), "normal", location=torch.arange(5.0), scale=torch.full((5,), 2.0)
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_each_decoder_computes_in_the_page_what_it_does_here(
    open_page: Callable[..., Any], written: Path, name: str
) -> None:
    decoder, z = DECODERS[name](), torch.randn(3)
    held = program(decoder)
    assert held is not None
    found = open_page(written).evaluate(
        "([held, z]) => Array.from(explorer.decoderOf(held, z.length).decode(z).values)",
        [held, z.tolist()],
    )
    expected = decoder(z[None]).mean.detach().flatten().double()
    top = max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=PIXELS * top)


def test_a_table_decodes_to_means_and_likeliest_categories(
    open_page: Callable[..., Any], written: Path
) -> None:
    decoder, z = mixed(), torch.randn(3)
    found = open_page(written).evaluate(
        "([held, z]) => explorer.decoderOf(held, z.length).decode(z)",
        [program(decoder), z.tolist()],
    )
    with torch.no_grad():
        parts = decoder(z[None]).base_dist
    shares = parts.categorical.probs.flatten()
    expected = [parts.normal.mean.item(), parts.bernoulli.probs.item(), float(shares.argmax())]
    np.testing.assert_allclose(found["values"], expected, atol=PIXELS)
    assert found["shares"][2] == pytest.approx(float(shares.max()), abs=PIXELS)


def test_a_decoder_that_the_page_does_not_know_is_not_taken_for_another() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softmax(-1))
    assert program(pv.models.BernoulliDecoder(network, torch.Size((4,)))) is None
    assert program(pv.models.BernoulliDecoder(gated_mlp((3, 4, 4)), torch.Size((4,)))) is not None


def test_steps_are_off_by_half_of_one_at_most() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    values[4, 1] = np.nan
    for size in (1, 2, 3):
        held = quantise(values, size)
        raw = np.frombuffer(base64.b64decode(held["data"]), np.uint8).reshape(50, 3, size)
        whole = (raw.astype(np.int64) << (8 * np.arange(size))).sum(2)
        back = np.array(held["low"]) + whole * held["step"]
        missing = whole == 2 ** (8 * size) - 1
        assert missing.sum() == 1 and missing[4, 1]
        error = np.abs(back - values)[~missing].max()
        assert error <= max(held["step"]) / 2 * (1 + 1e-9)


def test_a_mixture_of_few_normals_is_itself_and_others_are_said_to_be_near() -> None:
    assert as_normals(pv.StandardNormal(3)(), seed=0)["words"] == ""
    flow = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.AffineTransform(1.0, 2.0)]
    )
    assert "4,000 draws" in as_normals(flow, seed=0)["words"]


def facts_of(written: Path) -> dict[str, Any]:
    text = written.read_text(encoding="utf-8")
    return json.loads(text.split('id="facts">')[1].split("</script>")[0])


def test_new_rows_of_a_table_stand_side_by_side(
    open_page: Callable[..., Any], written: Path, tmp_path: Path
) -> None:
    facts = facts_of(written)
    columns = [{"name": f"pixel {n}", "kind": "real", "categories": []} for n in range(64)]
    table = {"image": False, "columns": columns, "mean": [0.0] * 64, "spread": [1.0] * 64}
    path = tmp_path / "page.html"
    path.write_text(document(facts | {"row": facts["row"] | table}), encoding="utf-8")
    page = open_page(path)
    page.press("#over", "s")
    page.press("#over", "i")
    for place, count in (("#samples", 8), ("#line", 9)):
        assert page.locator(f"{place} tbody tr").count() == 64
        assert page.locator(f"{place} thead th").count() == 1 + count
        assert page.locator(f"{place} td").count() == 64 * count


def test_names_are_text_in_the_page(written: Path) -> None:
    facts = facts_of(written)
    evil = "</script><img src=x onerror=alert(1)>"
    page = document(facts | {"name": evil})
    assert evil not in page and "<img" not in page
    assert "default-src 'none'" in page and math.isfinite(facts["row"]["low"])


def test_the_built_page_is_that_of_its_sources() -> None:
    if not SOURCE.exists():
        pytest.skip("only a checkout has the sources")
    digest = hashlib.sha256()
    for path in sorted(SOURCE.glob("*.js"), key=lambda path: path.name):
        digest.update(path.read_bytes())
    built = SOURCE.parent / "assets" / "explorer.js"
    assert digest.hexdigest() in built.read_text(encoding="utf-8"), "run make assets"


def test_one_unit_is_refused() -> None:
    encoding = dist.Normal(torch.zeros(5, 1), torch.ones(5, 1)).to_event(1)
    with pytest.raises(pv.InputError, match="codes of two or more units"):
        check(pv.AggregatedPosterior(encoding))


def test_a_decoder_that_the_page_can_not_run_is_shown_at_codes_decoded_before(
    open_page: Callable[..., Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.explorer.contents.program", lambda decoder: None)
    page = open_page(pv.explore(run, tmp_path / "page.html"))
    count = min(CENTRES, len(run.train))
    assert f"the nearest of {count} codes that were decoded before" in page.inner_text(
        "#decoder-words"
    )
    held = contents(run, rows=False)["decoder"]
    chosen = unpacked(held["codes"]).reshape(count, -1)
    loc = run.aggregated.encoding.mean.numpy()
    assert all((loc == code).all(1).any() for code in chosen)  # codes of training rows
    expected = run.decode(torch.from_numpy(chosen)).mean.reshape(count, -1).numpy()
    np.testing.assert_allclose(unpacked(held["decoded"]).reshape(count, -1), expected, atol=1e-6)
    z = chosen[7] + 1e-4  # nearest to that one
    found = page.evaluate("z => Array.from(explorer.decode(z))", z.tolist())
    np.testing.assert_allclose(found, expected[7], atol=1e-6)


def unpacked(held: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(held["data"]), "<f4").copy()


@pytest.mark.parametrize("masked", [False, True])
def test_moments_of_rows_are_those_of_all_whatever_the_blocks(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(50, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5.0
    mask = torch.rand(50, 3) < 0.8 if masked else None
    data = Dataset("toy", values, obs_mask=mask)
    rows = torch.randperm(50)[:40]
    monkeypatch.setattr("pyrovae.explorer.contents.BLOCK", 7)
    found = _moments(data, rows)
    for column in range(3):
        there = torch.ones(40, dtype=torch.bool) if mask is None else mask[rows, column]
        known = values[rows, column][there].double()
        assert float(found.mean[column]) == pytest.approx(float(known.mean()), rel=1e-9)
        assert float(found.spread[column]) == pytest.approx(float(known.std()), rel=1e-9)
    known = values[rows] if mask is None else values[rows][mask[rows]]
    assert (float(found.low), float(found.high)) == (float(known.min()), float(known.max()))


def test_rows_that_do_not_fit_are_never_made_double(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(data: Dataset, rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return _numbers(data, rows)

    monkeypatch.setattr("pyrovae.explorer.contents._numbers", counting)
    monkeypatch.setattr("pyrovae.explorer.contents.BLOCK", 32)
    monkeypatch.setattr("pyrovae.explorer.contents.ROOM", 1000)
    assert contents(run, rows=True)["row"]["values"] is None
    assert max(sizes) == 32


def test_codes_outside_of_a_density_are_said_to_be_there(
    open_page: Callable[..., Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    density = run.diagnosis.prior
    log_prob = type(density).log_prob

    def cut(self: Any, z: torch.Tensor) -> torch.Tensor:
        return log_prob(self, z).where(z[..., 0] > 0, -torch.inf)

    monkeypatch.setattr(type(density), "log_prob", cut)
    held = contents(run, rows=False)
    (place,) = [n for n, c in enumerate(held["colours"]) if c["name"] == "log prior at the code"]
    monkeypatch.setattr("pyrovae.explorer.page.contents", lambda run, rows: held)
    page = open_page(pv.explore(run, tmp_path / "page.html"))
    page.select_option("#colour", str(place))
    means = torch.cat([run.aggregated.encoding.mean, run.encode_part("held_out").mean])
    count = int((means[:, 0] <= 0).sum())
    assert f"Grey: the {count} outside of where it has any density." in page.inner_text("#legend")
