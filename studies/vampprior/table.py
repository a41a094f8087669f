"""The table of all rows there are, between its marks in a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.vampprior.data import SOURCES
from studies.vampprior.results import PRIORS, WAYS, Result, read
from studies.vampprior.rows import FEW, Row

MARK = "<!-- {} -->"
PAPER = {
    ("caltech", 1): (-123.43, -114.55), ("caltech", 2): (-112.08, -108.28),
    ("frey", 1): (4.63, 4.57), ("frey", 2): (4.61, 4.51),
    ("mnist", 1): (-84.50, -82.38), ("mnist", 2): (-82.42, -81.24),
    ("static-mnist", 1): (-88.56, -85.57), ("static-mnist", 2): (-86.05, -83.19),
}  # fmt: skip
MEASURED = {"own": "own", "q_agg": "raw q_agg", "ex_post": "ex-post"}
FACES = 28 * 20  # pixels

Results = Sequence[Result]


def render(page: Path) -> None:
    """Write the tables of all models there are, by their most test images, into a page."""
    models: dict[tuple[Any, ...], Result] = {}
    results = [result for result in read() if result["program"] == "pyrovae"]
    for result in results:
        model = (result["data"], result["layers"], result["prior"], -float(result["rate"]))
        model += (result["weights"] != Row.weights, _short(result), result["averaged_epochs"])
        model += (result["seed"],)
        if model not in models or _images(result) > _images(models[model]):
            models[model] = result
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for model, result in models.items():
        groups.setdefault(
            (*model[:-1], result["images_with_all_draws"], result["draws"]), []
        ).append(result)
    rows = [group for _, group in sorted(groups.items())]
    text = page.read_text()
    compared = _ways([result for result in results if result["compared_images"]])
    for name, lines in (("figures", _figures(rows)), ("runs", _runs(rows)), ("ways", compared)):
        before, _, after = text.split(MARK.format(name))
        text = MARK.format(name).join((before, "\n" + "\n".join(lines) + "\n", after))
    page.write_text(text)


def _figures(rows: Sequence[Results]) -> list[str]:
    lines = [
        "| data | layers | prior in training | rate | weights | seeds | paper | own prior "
        "| raw q_agg | ex-post prior | gain ex post |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in rows:
        first = group[0]
        paper = PAPER[first["data"], first["layers"]][first["prior"] != "standard"]
        cells = [*_key(first), str(len(group)), f"{paper:.2f}"]
        cells += [_spread(group, f"log_p_{name}") for name in PRIORS]
        cells.append(_spread(group, "gain_ex_post"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _runs(rows: Sequence[Results]) -> list[str]:
    lines = [
        "| data | layers | prior in training | rate | weights | draws × images | best epoch "
        "| validation ELBO | k̂ > 0.7: own, ex post | annealing − importance: own, ex post "
        "| chosen |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in rows:
        first = group[0]
        cells = [
            *_key(first),
            _draws(first),
            ", ".join(str(r["best_epoch"]) for r in group),
            ", ".join(f"{r['validation_elbo']:.1f}" for r in group),
            ", ".join(_share(group, name) for name in ("own", "ex_post")),
            ", ".join(
                _spread(checked, f"annealing_gain_{name}")
                for name in ("own", "ex_post")
                if (checked := [r for r in group if r["annealed_images"]])
            ),
            "; ".join(sorted({r["chosen"] for r in group})),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ways(results: Results) -> list[str]:
    lines = [
        "| data | layers | prior in training | rate | weights | seed | draws × images | prior "
        "| by importance | by auto | auto − importance | gain by importance | gain by auto "
        "| k̂ > 0.7: importance, auto | seconds: importance, auto |",
        f"|{'---|' * 15}",
    ]
    for result in results:
        seconds = result["importance_seconds"]
        for name in PRIORS:
            columns = [f"{way}_log_p_{name}" for way in WAYS] + [f"auto_minus_importance_{name}"]
            gains = [] if name == "own" else [f"{way}_gain_{name}" for way in WAYS]
            cells = [*_key(result), str(result["seed"])]
            cells += [f"{result['draws']:,} × {result['compared_images']:,}", MEASURED[name]]
            cells += [_spread([result], column) for column in columns + gains]
            cells += [""] * (2 - len(gains))
            cells.append(
                ", ".join(f"{result[f'{way}_share_k_above_0.7_{name}']:.1%}" for way in WAYS)
            )
            cells.append(f"{seconds / len(PRIORS):.2f}, {result[f'auto_seconds_{name}']:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _key(result: Result) -> list[str]:
    epochs = _short(result)
    short = f", {epochs} epochs" if epochs else ""
    if averaged := result["averaged_epochs"]:
        short += f" and {averaged} averaged"
    names = [str(result[name]) for name in ("layers", "prior", "rate", "weights")]
    return [result["data"] + short, *names]


def _short(result: Result) -> int:
    """The number of epochs that cut training short: such a model is not the paper's. Else 0."""
    return int(result["epochs"]) if result["stopped_by"] == "epochs" else 0


def _images(result: Result) -> tuple[int, int]:
    """How many test images the figures speak of, and how many of them had all draws."""
    return result["test_images"], result["images_with_all_draws"]


def _draws(result: Result) -> str:
    everything, rows = _images(result)
    others = f", {FEW} × {everything:,}" if everything > rows else ""
    return f"{result['draws']:,} × {rows:,}{others}"


def _share(group: Results, name: str) -> str:
    return f"{statistics.mean(r[f'share_k_above_0.7_{name}'] for r in group):.1%}"


def _unit(result: Result) -> float:
    """What a figure in nats is multiplied by: bits per dimension count upwards from 0."""
    return -1 / (FACES * math.log(2)) if SOURCES[result["data"]].bits else 1.0


def _spread(group: Results, column: str) -> str:
    """Mean over seeds ± its standard error; of one seed, ± that over test images."""
    unit = _unit(group[0])
    values = [unit * r[column] for r in group]
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    else:
        error = abs(unit) * group[0][f"{column}_error"]
    digits = 3 if unit < 0 else 2
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"
