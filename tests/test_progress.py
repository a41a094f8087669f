"""A progress bar counts every step, and says nothing where it is not shown."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pyrovae.progress import in_lines, progress_bar


def test_every_step_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("waiting", 1000, done=200, progress=True) as bar:
        for _ in range(800):
            bar.tick()
        bar.update("done with it")
    shown = capsys.readouterr()
    assert "done with it" in shown.err and "100 %" in shown.err
    assert not shown.out


def test_it_is_silent_if_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("waiting", 2, progress=False) as bar:
        bar.tick()
        bar.update("done with it")
    assert capsys.readouterr() == ("", "")


def test_lines_say_how_much_time_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 4))  # seconds: each look at the clock takes four
    monkeypatch.setattr("pyrovae.progress.time.monotonic", lambda: next(clock))
    with in_lines(30.0), progress_bar("epoch 1", 100, done=20, progress=None) as bar:
        for _ in range(16):
            bar.tick()
        bar.update("epoch 2")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pyrovae: epoch 1: 28 %, about 5 min left",  # 8 steps in 32 s, 72 to go
        "pyrovae: epoch 1: 36 %, about 4 min left",
    ]
    with progress_bar("epoch 1", 100, progress=None) as bar:  # and none outside
        bar.tick()
    with in_lines(1.0), progress_bar("epoch 1", 100, progress=False) as bar:
        bar.tick()
    assert capsys.readouterr() == ("", "")


class Display:
    """What IPython.display has: a cell that shows what it was last given."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Display:
        assert raw and display_id
        self.shown.append(content)
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(content)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Display:
    cell = Display()
    shell: Any = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None), display=cell)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", cell)  # type: ignore[arg-type]
    return cell


@pytest.mark.parametrize("progress", [None, True])
def test_in_a_notebook_it_is_below_the_cell_until_all_is_done(
    progress: bool | None, notebook: Display, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("p < 1", 50, done=10, progress=progress) as bar:
        for _ in range(40):
            bar.tick()
        bar.update("p < 2")
    assert notebook.shown[0] == {
        "text/plain": "p < 1: 20 %",
        "text/html": '<progress value="10" max="50"></progress> p &lt; 1: 20 %',
    }
    assert notebook.shown[-2]["text/plain"] == "p < 2: 100 %"
    assert notebook.shown[-1] == {"text/plain": "", "text/html": ""}
    with progress_bar("silent", 50, progress=False) as bar:
        bar.tick()
    assert "silent" not in notebook.shown[-1]["text/plain"]
    assert capsys.readouterr() == ("", "")
