"""What the README shows is what a reader gets, and every example runs as a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LIGHT = (
    "effort=pv.Effort("
    "codes=1000, evidence_rows=40, evidence_draws=100, simulations=100, gap_rows=0, samples=100)"
)
QUICKER = {
    "epochs=100, patience=20": "epochs=2",
    "held_out=test, validation=validation)": f"held_out=test, validation=validation, {LIGHT})",
}


def run(*arguments: str, cwd: Path) -> str:
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_readme_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 1
    script = "\n".join(blocks)
    for text, quicker in QUICKER.items():
        assert text in script
        script = script.replace(text, quicker)
    (tmp_path / "readme.py").write_text(script)
    assert "ample from" in run("readme.py", cwd=tmp_path)


OWN_PAIR = """
import pyro, torch
import pyro.distributions as dist

def model(x, label=None, depth=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.repeat(1, 2), 0.5).to_event(1), obs=x)

def guide(x, label=None, depth=None):
    gain = pyro.param("gain", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(gain * (x[:, :2] + x[:, 2:]), 0.4).to_event(1))

train, validation, test = torch.randn(3, 40, 2).repeat(1, 1, 2) + 0.5 * torch.randn(3, 40, 4)
counts, counts2 = train, test
label = label2 = depth = depth2 = torch.ones(40)
"""


def test_page_on_own_pairs_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "own-pair.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(blocks) == 4
    (tmp_path / "page.py").write_text("\n".join([OWN_PAIR, *blocks]))
    assert "ample from" in run("page.py", cwd=tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    assert run(str(example), "--epochs", "2", cwd=tmp_path)


def test_readme_names_files_that_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


WORKERS = {"numpyro_step"}  # run by an interpreter that has NumPyro, with arguments


def test_every_benchmark_finds_what_it_imports(tmp_path: Path) -> None:
    folder = ROOT / "benchmarks"
    names = sorted({path.stem for path in folder.glob("*.py")} - WORKERS)
    lines = [f"import sys; sys.path.insert(0, {str(folder)!r})", *(f"import {n}" for n in names)]
    (tmp_path / "imports.py").write_text("\n".join(lines))
    run("imports.py", cwd=tmp_path)


# -- the notebook, and the page that shows what comes out of it -----------------------------------


def shown(text: str) -> list[str]:
    """The words of an output; numbers differ between machines, and so does what can be told."""
    text = re.sub(r"Estimate\([^()]*\)", "#", text)
    return re.sub(r"-?\d+(\.\d*)?(e[-+]\d+)?", "#", text).split()


def test_the_notebook_runs_and_the_page_shows_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", commands)  # where `pyrovae` is
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "ten_tasks.ipynb", as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    page = (ROOT / "docs" / "howto" / "ten-tasks.md").read_text(encoding="utf-8")
    on_page = re.findall(
        r"```(?:python|console)\n(.*?)\n```(?:\n\n```text\n(.*?)\n```)?", page, re.S
    )
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [code for code, _ in on_page] == [cell.source.removeprefix("!") for cell in cells]
    for (code, expected), cell in zip(on_page, cells, strict=True):
        by_kind = {output.output_type: output for output in cell.outputs}
        assert "error" not in by_kind and "stderr" not in str(cell.outputs), code
        if expected:
            text = by_kind["execute_result"]["data"]["text/plain"]
            assert shown(text) == shown(expected), code
