"""A progress bar counts every step, and says nothing where it is not shown."""

from __future__ import annotations

import pytest

from pyrovae.progress import progress_bar


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
