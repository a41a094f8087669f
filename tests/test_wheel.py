"""What is installed holds all that the package reads beside its code."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_every_file_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        held = {Path(name) for name in wheel.namelist()}
    package = ROOT / "pyrovae"
    bundled = package / "explorer" / "source"  # as pyrovae/explorer/assets
    files = {path for path in package.rglob("*") if path.is_file() and bundled not in path.parents}
    expected = {path.relative_to(ROOT) for path in files if path.suffix != ".pyc"}
    assert {path for path in held if path.parts[0] == "pyrovae"} == expected
    assert {"py.typed", "explorer.js", "page.html.jinja"} <= {path.name for path in held}
