"""The command: what it prints, what it writes, and how it refuses input that it can't use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae
import pyrovae.command.analysis
from pyrovae.command.analysis import AnalysisOptions, default_batch_size, default_epochs
from pyrovae.command.arguments import build
from pyrovae.command.cli import BAD_INPUT, FAILED, INTERRUPTED, OK, main
from pyrovae.command.interruption import importing
from pyrovae.data import Dataset, TableOptions
from pyrovae.diagnostics.effort import Effort
from pyrovae.errors import InputError

TABLE = np.random.default_rng(0).normal(size=(60, 3))


@dataclass(frozen=True)
class Refusal:
    """Data and options that can't be used, and words that the error line must have."""

    arguments: Callable[[Path], list[str]]
    words: tuple[str, ...]


def saved(array: np.ndarray, *options: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        np.save(folder / "data.npy", array)
        return [str(folder / "data.npy"), *options]

    return make


def with_value(value: float) -> np.ndarray:
    array = TABLE.copy()
    array[41, 2] = value
    return array


def text(name: str, content: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_text(content, encoding="utf-8")
        return [str(folder / name)]

    return make


def file_in_the_way(folder: Path) -> list[str]:
    (folder / "taken").write_text("", encoding="utf-8")
    return ["digits", "--out", str(folder / "taken")]


def file_among_the_parents(folder: Path) -> list[str]:
    (folder / "taken").write_text("", encoding="utf-8")
    return ["digits", "--out", str(folder / "taken" / "a" / "b")]


def interrupted_run(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "checkpoint.pt").write_bytes(b"")
    return ["digits", "--out", str(folder / "run")]


def broken_checkpoint(folder: Path) -> list[str]:
    return [*interrupted_run(folder), "--resume", "--likelihood", "normal"]


ROWS = "".join(f"{a},{b}\n" for a, b, _ in TABLE)
BAD_INPUTS = {
    "missing file": Refusal(lambda f: [str(f / "none.csv")], ("none.csv", "does not exist")),
    "unreadable file": Refusal(text("data.npy", "junk"), ("readable .npy", "data.npy")),
    "directory": Refusal(lambda f: [str(f)], ("directory",)),
    "unknown format": Refusal(text("data.xlsx", "junk"), (".parquet", "'.xlsx'")),
    "NaN": Refusal(
        saved(with_value(np.nan), "--likelihood", "normal"), ("missing cells", "'mixed'")
    ),
    "inf": Refusal(saved(with_value(np.inf)), ("finite", "inf", "row 41, column 2")),
    "string": Refusal(
        text("data.csv", f"age,height\n{ROWS}1,tall\n"), ("'tall'", "row 61", "'height'")
    ),
    "few rows": Refusal(saved(TABLE[:5]), ("at least 20 rows", "got 5")),
    "constant": Refusal(saved(np.ones((60, 3))), ("data points that differ",)),
    "bernoulli outside [0, 1]": Refusal(
        saved(with_value(3.0).clip(0), "--likelihood", "bernoulli"), ("in [0, 1]", "row", "normal")
    ),
    "bernoulli of bytes": Refusal(
        saved((TABLE * 60 + 128).astype("uint8"), "--likelihood", "bernoulli"),
        ("Divide the values by 255", "row 0, column"),
    ),
    "categorical fractions": Refusal(
        saved(TABLE, "--likelihood", "categorical"), ("0, 1, 2, …", "row 0, column 0")
    ),
    "unknown likelihood": Refusal(
        lambda f: ["digits", "--likelihood", "gaussian"], ("bernoulli, normal, categorical",)
    ),
    "misspelt likelihood": Refusal(
        lambda f: ["digits", "--likelihood", "Bernouli"], ("Did you mean 'bernoulli'?",)
    ),
    "out is a file": Refusal(file_in_the_way, ("--out", "a file of that name")),
    "out under a file": Refusal(file_among_the_parents, ("--out", "taken")),
    "out not writable": Refusal(lambda f: ["digits", "--out", "/proc/none/x"], ("--out", "/proc")),
    "unknown device": Refusal(lambda f: ["digits", "--device", "gpu9"], ("cpu", "'gpu9'")),
    "device without data": Refusal(lambda f: ["digits", "--device", "meta"], ("'meta'",)),
    "absent device": Refusal(lambda f: ["digits", "--device", "cuda:99"], ("'cuda:99'",)),
    "run in the way": Refusal(interrupted_run, ("checkpoint.pt", "--resume")),
    "broken checkpoint": Refusal(broken_checkpoint, ("checkpoint", "damaged")),
    "latent": Refusal(lambda f: ["digits", "--latent", "0"], ("--latent", "≥ 1", "'0'")),
    "epochs": Refusal(lambda f: ["digits", "--epochs", "ten"], ("--epochs", "≥ 1", "'ten'")),
    "seed": Refusal(lambda f: ["digits", "--seed", "-1"], ("--seed", "≥ 0", "'-1'")),
    "draws": Refusal(lambda f: ["digits", "--draws", "1"], ("--draws", "≥ 2", "'1'")),
    "hidden": Refusal(lambda f: ["digits", "--hidden", "64,,"], ("--hidden", "'64,,'")),
    "too many units": Refusal(
        lambda f: ["digits", "--latent", "4000000000"], ("GB of memory", "--latent")
    ),
    "too wide": Refusal(lambda f: ["digits", "--hidden", "4,4000000000,4000000000"], ("--hidden",)),
    "too many components": Refusal(
        lambda f: ["digits", "--prior", "mixture", "--components", "4000000000"], ("GB of memory",)
    ),
    "too many draws": Refusal(
        lambda f: ["digits", "--draws", "4000000000"], ("GB of memory", "fewer --draws")
    ),
    "too large a flow": Refusal(
        lambda f: ["digits", "--prior", "flow", "--latent", "1000000000"], ("GB of memory",)
    ),
    "hidden, a long number": Refusal(lambda f: ["digits", "--hidden", "9" * 5000], ("--hidden",)),
    "nobody's home": Refusal(lambda f: ["~nosuchuser/x.npy"], ("home folder", "'~nosuchuser'")),
    "out at nobody's home": Refusal(
        lambda f: ["digits", "--out", "~nosuchuser/o"], ("--out", "home folder", "'~nosuchuser'")
    ),
    "unknown prior": Refusal(
        lambda f: ["digits", "--prior", "vampire"], ("mixture, vamp, flow, exemplar", "'vampire'")
    ),
    "components of none": Refusal(
        lambda f: ["digits", "--components", "5"], ("mixture or vamp", "'standard'")
    ),
    "components of exemplars": Refusal(
        lambda f: ["digits", "--prior", "exemplar", "--components", "5"], ("'exemplar'", "Leave")
    ),
    "pseudo-inputs": Refusal(
        lambda f: ["digits", "--prior", "vamp", "--components", "9999"], ("1 to 1258", "9999")
    ),
    "flow of one unit": Refusal(
        lambda f: ["digits", "--prior", "flow", "--latent", "1"], ("at least 2 latent units",)
    ),
    "unknown option": Refusal(lambda f: ["digits", "--fast"], ("--fast", "--help")),
    "near miss": Refusal(
        lambda f: ["digits", "--liklihood", "normal"], ("Did you mean '--likelihood'?",)
    ),
    "another's word for a likelihood": Refusal(
        lambda f: ["digits", "--likelihood", "gaussian"], ("Did you mean 'normal'?",)
    ),
    "another's word for a prior": Refusal(
        lambda f: ["digits", "--prior", "vampprior"], ("Did you mean 'vamp'?",)
    ),
    "learning rate": Refusal(
        lambda f: ["digits", "--learning-rate", "-1"], ("--learning-rate", "'-1'")
    ),
    "unknown method": Refusal(lambda f: ["digits", "--method", "x"], ("'refined'", "'x'")),
    "no such config": Refusal(lambda f: ["--config", str(f / "none.toml")], ("none.toml",)),
    "config of tables": Refusal(
        lambda f: ["--config", *text("c.toml", "[model]\nlatent = 3\n")(f)], ("[model]",)
    ),
    "config with an unknown option": Refusal(
        lambda f: ["--config", *text("c.toml", "latnt = 3\n")(f)], ("'--latent'",)
    ),
    "config in a config": Refusal(
        lambda f: ["--config", *text("c.toml", 'config = "d.toml"\n')(f)], ("got config",)
    ),
    "config of a run without a file": Refusal(
        lambda f: ["--config", *text("c.toml", '[data]\nname = "x"\n[options]\nlatent = 3\n')(f)],
        ("from no file",),
    ),
    "config with a bad value": Refusal(
        lambda f: ["--config", *text("c.toml", "latent = 0\n")(f)], ("--latent", "'0'")
    ),
    "two data sets": Refusal(lambda f: ["digits", "a.npy"], ("a.npy", "--help")),
}


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if training begins: bad input must be found before."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("pyrovae.training.loop.Trainer.run", fail)


def run(arguments: list[str]) -> int:
    try:
        return main(["analyze", *arguments])
    except SystemExit as stop:  # argparse's way
        assert isinstance(stop.code, int)
        return stop.code


@pytest.mark.float32
@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = BAD_INPUTS[case].arguments(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = files_in(tmp_path)
    assert run(arguments) == BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1
    assert "expected" in err and "Traceback" not in err
    for word in BAD_INPUTS[case].words:
        assert word in err
    assert files_in(tmp_path) == before


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = Path(pyrovae.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pyrovae", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def test_bad_input_as_a_shell_sees_it(tmp_path: Path) -> None:
    process = command("analyze", "none.npy", cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (BAD_INPUT, "", 1)
    assert process.stderr.startswith("pyrovae: expected 'digits' or a file; got 'none.npy'")
    assert files_in(tmp_path) == set()


def test_the_whole_job_on_a_table_as_a_shell_sees_it(tmp_path: Path) -> None:
    pd.DataFrame(TABLE, columns=["a", "b", "c"]).to_csv(tmp_path / "data.csv", index=False)
    words = "analyze data.csv --latent 2 --hidden 8 --epochs 2 --seed 1 --out".split()
    process = command(*words, "my report", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (OK, "")
    assert process.stdout.splitlines()[-1] == "report: my report/report.html"
    words = ("Does the model fit? ", "What to draw from: ", "Draw new rows: ", "ELBO", "report:")
    places = [process.stdout.index(word) for word in words]
    assert places == sorted(places)
    assert "index-code MI" not in process.stdout  # which --verbose prints
    files = {path.name for path in (tmp_path / "my report").iterdir()}
    assert {"report.html", "measures.csv", "diagnosis.nc", "parameters.pt"} <= files
    assert "checkpoint.pt" not in files


@pytest.mark.parametrize("prior", ["vamp", "exemplar"])
def test_columns_may_have_any_units(prior: str, tmp_path: Path) -> None:
    mixed = TABLE * (1.0, 1e4, 1e-3) + (0.0, 3e5, 7.0)
    table = np.column_stack([mixed, np.full(60, 0.1)]).astype("float32")
    np.save(tmp_path / "data.npy", table)
    words = f"analyze data.npy --prior {prior} --latent 2 --hidden 8 --epochs 2 --out o".split()
    process = command(*words, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (OK, "")
    measures = pd.read_csv(tmp_path / "o" / "measures.csv").set_index(["data", "measure"])
    assert np.isfinite(measures.loc[("held-out", "elbo"), "value"])
    if prior == "vamp":  # within the range of its own column, not of all columns
        parameters = torch.load(tmp_path / "o" / "parameters.pt", weights_only=True)
        low, high = parameters["prior.low"].numpy(), parameters["prior.high"].numpy()
        assert bool(((table.min(0) <= low) & (low <= high) & (high <= table.max(0))).all())


# -- how main calls the library --------------------------------------------------------------------


class Library:
    """A stand-in for the work of ``analyze``, which records its arguments and calls ``act``."""

    def __init__(self, act: Callable[[AnalysisOptions], Any]) -> None:
        self.act = act
        self.options = AnalysisOptions()
        self.data: Dataset | None = None

    def __call__(self, data: Dataset, likelihood: str, options: AnalysisOptions) -> Any:
        self.data, self.options = data, options
        return self.act(options)


def raising(error: BaseException) -> Callable[[AnalysisOptions], Any]:
    def act(options: AnalysisOptions) -> Any:
        raise error

    return act


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Library]:
    monkeypatch.chdir(tmp_path)

    def install(act: Callable[[AnalysisOptions], Any]) -> Library:
        stand_in = Library(act)
        monkeypatch.setattr(pyrovae.command.analysis, "_vae_task", stand_in)
        return stand_in

    return install


def test_options_have_the_library_s_defaults(library: Callable[..., Library]) -> None:
    stand_in = library(raising(InputError("expected an end; got one.")))
    assert run([]) == BAD_INPUT
    assert stand_in.options == AnalysisOptions(
        likelihood="normal", epochs=300, batch_size=100, source="digits",
        command="pyrovae analyze",
    )  # fmt: skip
    assert stand_in.data is not None and stand_in.data.name == "digits"


def test_options_reach_the_library(library: Callable[..., Library]) -> None:
    stand_in = library(raising(InputError("expected an end; got one.")))
    words = (
        "digits --likelihood normal --latent 3 --prior vamp --components 7 --check-guide "
        "--draws 70 --hidden 64,32 --epochs 7 --seed 5 --out o/p --device cpu --resume --force "
        "--batch-size 20 --learning-rate 0.01 --kl-warmup 3 --average 4 --method refined --quiet"
    )
    assert run(words.split()) == BAD_INPUT
    assert stand_in.options == AnalysisOptions(
        likelihood="normal",
        latent=3,
        prior="vamp",
        components=7,
        effort=Effort(evidence_draws=70, nuts_rows=4, method="refined"),
        hidden=(64, 32),
        epochs=7,
        batch_size=20,
        learning_rate=0.01,
        kl_warmup=3,
        average=4,
        seed=5,
        out=Path("o/p"),
        device="cpu",
        resume=True,
        force=True,
        progress=False,
        source="digits",
        command=f"pyrovae analyze {words}",
    )


def test_a_first_look_can_have_more_draws(library: Callable[..., Library]) -> None:
    stand_in = library(raising(InputError("expected an end; got one.")))
    assert run(["--quick", "--draws", "70"]) == BAD_INPUT
    assert stand_in.options is not None
    assert stand_in.options.effort == replace(Effort.quick(), evidence_draws=70)


@pytest.mark.parametrize("width", range(60, 121, 10))
def test_no_word_of_the_help_is_broken_at_a_hyphen(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for parser in build()[1].values():
        assert not [line for line in parser.format_help().splitlines() if line.endswith("-")]


def test_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == OK
    text = " ".join(capsys.readouterr().out.split())
    defaults = AnalysisOptions()
    for field in fields(AnalysisOptions):
        if field.name not in ("progress", "effort", "source", "command", "table"):
            assert f"--{field.name.replace('_', '-')} " in text
    for field in fields(TableOptions):
        assert f"--{field.name}" in text
    hidden = ",".join(map(str, defaults.layers))
    values = (
        defaults.latent, defaults.seed,
        defaults.learning_rate, defaults.kl_warmup, defaults.average,
    )  # fmt: skip
    for value in values:
        assert f"(default {value})" in text
    assert f"(default {hidden}; of conv: " in text
    assert f"(default {default_epochs(1000)}; fewer" in text
    fewest, most = default_batch_size(1), default_batch_size(10**9)
    assert f"(default a 300th of the rows, from {fewest} to {most:,})" in text
    assert f"(default {defaults.out};" in text
    assert defaults.likelihood is None and defaults.device is None and not defaults.resume


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("expected a; got b.\nDo c."), BAD_INPUT, "pyrovae: expected a; got b. Do c.\n"),
        (FloatingPointError("the loss is nan"), FAILED, "pyrovae: the loss is nan\n"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            BAD_INPUT,
            "pyrovae: expected more memory; got: DefaultCPUAllocator: can't allocate memory: you "
            "tried 9 bytes. Give fewer rows, or smaller --latent and --hidden.\n",
        ),
        (
            MemoryError(),
            BAD_INPUT,
            "pyrovae: expected more memory; got: out of memory. Give fewer rows, or smaller "
            "--latent and --hidden.\n",
        ),
        (
            OSError(28, "No space left on device", "x/report.html"),
            BAD_INPUT,
            "pyrovae: expected to read and write files; got: No space left on device at "
            "'x/report.html'.\n",
        ),
        (
            KeyboardInterrupt(),
            INTERRUPTED,
            "pyrovae: interrupted before the first epoch was over; nothing was saved.\n",
        ),
    ],
)
def test_errors_of_a_run_are_one_line_and_leave_no_empty_folder(
    error: BaseException,
    code: int,
    line: str,
    library: Callable[..., Library],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    library(raising(error))
    assert run(["digits", "--out", "a/b"]) == code
    assert capsys.readouterr() == ("", line)
    assert files_in(tmp_path) == set()


def test_a_bug_keeps_its_traceback(library: Callable[..., Library]) -> None:
    library(raising(ValueError("too many values to unpack")))
    with pytest.raises(ValueError, match="too many values"):
        run([])


def test_an_interrupt_says_how_to_go_on(
    library: Callable[..., Library], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def act(options: AnalysisOptions) -> None:
        (options.out / "checkpoint.pt").write_bytes(b"")
        raise KeyboardInterrupt

    library(act)
    assert run(["digits", "--out", "my run"]) == INTERRUPTED
    assert capsys.readouterr().err == (
        "pyrovae: interrupted; the last epoch was saved. "
        "Go on with: pyrovae analyze digits --out 'my run' --resume\n"
    )
    assert (tmp_path / "my run" / "checkpoint.pt").exists()


def test_ctrl_c_in_training_as_a_shell_sees_it(tmp_path: Path) -> None:
    root = Path(pyrovae.__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    options = "--likelihood normal --hidden 1024,1024 --epochs 1000000 --out run"
    words = [sys.executable, "-m", "pyrovae", "analyze", *options.split()]
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # A process in the background of a shell would inherit that it ignores the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        while process.poll() is None and not (tmp_path / "run" / "checkpoint.pt").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == INTERRUPTED
    assert err.count("\n") == 1 and f"pyrovae analyze {options} --resume" in err
    assert (tmp_path / "run" / "checkpoint.pt").exists()


SLOW_TORCH = "import time; print('importing', flush=True); time.sleep(60)"


def test_ctrl_c_while_the_library_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(SLOW_TORCH, encoding="utf-8")
    root = Path(pyrovae.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "pyrovae", "analyze"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == INTERRUPTED
    assert err == "pyrovae: interrupted before the work began; nothing was saved.\n"


def test_ctrl_c_is_handled_as_before_after_the_imports() -> None:
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    before = signal.getsignal(signal.SIGINT)
    with importing():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, outside)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == OK
    assert capsys.readouterr().out.startswith(f"pyrovae {pyrovae.__version__} (Python 3.")


def test_without_arguments_it_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == OK
    assert "pyrovae analyze --help" in capsys.readouterr().out
