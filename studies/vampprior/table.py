"""The table of all rows there are, between its marks in a page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vampprior.rows import FEW, RESULTS, Row

MARK = "<!-- {} -->"
PAPER = {
    ("caltech", 1): (-123.43, -114.55), ("caltech", 2): (-112.08, -108.28),
    ("frey", 1): (4.63, 4.57), ("frey", 2): (4.61, 4.51),
    ("mnist", 1): (-84.50, -82.38), ("mnist", 2): (-82.42, -81.24),
    ("static-mnist", 1): (-88.56, -85.57), ("static-mnist", 2): (-86.05, -83.19),
}  # fmt: skip
COLUMNS = ("own", "q_agg", "ex_post")

Results = Sequence[dict[str, Any]]


def render(page: Path) -> None:
    """Write the tables of all models there are, by their most test images, into a page."""
    models: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        model = (result["data"], result["layers"], result["prior"], -float(result["rate"]))
        model += (result["weights"] != Row.weights, _short(result), result.get("averaged", 0))
        model += (result["seed"],)
        if model not in models or _images(result) > _images(models[model]):
            models[model] = result
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for model, result in models.items():
        groups.setdefault((*model[:-1], result["test_rows"], result["draws"]), []).append(result)
    rows = [group for _, group in sorted(groups.items())]
    text = page.read_text()
    for name, lines in (("figures", _figures(rows)), ("runs", _runs(rows))):
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
        cells += [_spread(group, "log_p", name) for name in COLUMNS]
        cells.append(_spread(group, "gain", "ex_post"))
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
                _spread(checked, "annealed", name)
                for name in ("own", "ex_post")
                if (checked := [r for r in group if r["annealed"]])
            ),
            "; ".join(sorted({r["choice"] for r in group})),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _key(result: dict[str, Any]) -> list[str]:
    epochs = _short(result)
    short = f", {epochs} epochs" if epochs else ""
    if averaged := result.get("averaged"):
        short += f" and {averaged} averaged"
    names = [str(result[name]) for name in ("layers", "prior", "rate", "weights")]
    return [result["data"] + short, *names]


def _short(result: dict[str, Any]) -> int:
    """The number of epochs that cut training short: such a model is not the paper's. Else 0."""
    return int(result["epochs"]) if result["stopped"] == "epochs" else 0


def _images(result: dict[str, Any]) -> tuple[int, int]:
    """How many test images the figures speak of, and how many of them had all draws."""
    return result["log_p"]["own"]["size"], result["test_rows"]


def _draws(result: dict[str, Any]) -> str:
    everything, rows = _images(result)
    others = f", {FEW} × {everything:,}" if everything > rows else ""
    return f"{result['draws']:,} × {rows:,}{others}"


def _share(group: Results, name: str) -> str:
    return f"{statistics.mean(r['k_above_0.7'][name] for r in group):.1%}"


def _spread(group: Results, kind: str, name: str) -> str:
    """Mean over seeds ± its standard error; of one seed, ± that over test images."""
    unit = group[0]["unit"]
    values = [unit * r[kind][name]["value"] for r in group]
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    else:
        error = abs(unit) * group[0][kind][name]["standard_error"]
    digits = 3 if unit < 0 else 2
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"
