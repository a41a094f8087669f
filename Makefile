# Everything happens in .venv beside this file, or in one of its kin; `make clean` leaves nothing behind.
# Another interpreter: make demo PYTHON=/path/to/python3.12

PYTHON ?= python3
OUT ?= pyrovae-report
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# A process for each core, and one thread in each.
PYTEST := -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal
docs test test-lowest test-arviz1: export OMP_NUM_THREADS := 1

.DELETE_ON_ERROR:
.PHONY: help demo docs test test-lowest test-arviz1 lint format assets clean

help:
	@echo "make demo    install pyrovae into .venv and write a report on scikit-learn's digits"
	@echo "make test    install the test tools too, then: ruff, mypy, pytest (doctests and examples included)"
	@echo "make docs    install the site's tools too, run its notebooks, build it: docs/_build/html/index.html"
	@echo "make lint    only ruff and mypy"
	@echo "make format  let ruff format the code and sort its imports"
	@echo "make assets  bundle the explorer's page again, after a change in pyrovae/explorer/source (needs npm)"
	@echo "make clean   remove .venv, the report, caches and build products"
	@echo
	@echo "By hand, as each fills an environment of its own with gigabytes:"
	@echo "make test-lowest    pytest on the lowest versions that pyproject.toml declares"
	@echo "make test-arviz1    pytest on ArviZ 1.x, which needs Python 3.12: PYTHON=/path/to/python3.12"
	@echo
	@echo "Variables: PYTHON=$(PYTHON) (3.11 or newer), OUT=$(OUT) (where the demo writes)"

demo: .venv/.installed
	$(PY) -m pyrovae analyze digits --out "$(OUT)" --resume
	test -e "$(OUT)/explorer.html" || $(PY) -m pyrovae explore "$(OUT)"

docs: .venv/.installed-docs
	rm -rf docs/_build/html
	$(PY) -m sphinx -q -E -W --keep-going -j auto -d docs/_build/doctrees docs docs/_build/html
	$(PY) docs/check_site.py docs/_build/html

test: lint
	$(PY) $(PYTEST)

test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python $(PYTEST)

test-arviz1: .venv-arviz1/.installed
	.venv-arviz1/bin/python $(PYTEST)

lint: .venv/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv/.installed-test
	$(PY) -m ruff check --select I --fix .
	$(PY) -m ruff format .

assets:
	cd pyrovae/explorer/source && npm ci --no-audit --no-fund && npm run build

clean:
	rm -rf .venv .venv-lowest .venv-arviz1 pyrovae-report build dist *.egg-info
	rm -rf docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: nothing is installed again until pyproject.toml or constraints.txt changes.
.venv/.installed: $(PY) pyproject.toml constraints.txt
	@echo "Installing pyrovae and its pinned dependencies into .venv (minutes, the first time) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[report,tables,images]"
	@touch $@

.venv/.installed-test: $(PY) pyproject.toml constraints.txt
	@echo "Installing pyrovae, its pinned dependencies and the test tools into .venv (minutes, the first time) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[test]"
	@touch .venv/.installed $@

.venv/.installed-docs: $(PY) pyproject.toml constraints.txt
	@echo "Installing pyrovae, its pinned dependencies and the site's tools into .venv (minutes, the first time) ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch .venv/.installed $@

.venv-lowest/.installed: pyproject.toml constraints-lowest.txt
	$(call new_venv,.venv-lowest,3.11)
	.venv-lowest/bin/python -m pip install --constraint constraints-lowest.txt --editable ".[test]"
	@touch $@

.venv-arviz1/.installed: pyproject.toml constraints.txt
	$(call new_venv,.venv-arviz1,3.12)
	grep -v '^arviz' constraints.txt > .venv-arviz1/constraints.txt
	.venv-arviz1/bin/python -m pip install --constraint .venv-arviz1/constraints.txt \
	  "arviz>=1" --editable ".[test]"
	@touch $@

$(PY):
	$(call new_venv,.venv,3.11)

# An empty environment in a folder, $(1), of Python $(2) or newer.
define new_venv
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(2)".split("."))))' 2>/dev/null || { \
  echo "expected Python $(2) or newer as $(PYTHON);" \
    "got $$("$(PYTHON)" --version 2>/dev/null || echo "no such command")." \
    "Name another: make $(MAKECMDGOALS) PYTHON=/path/to/python$(2)" >&2; exit 1; }
@"$(PYTHON)" -m venv --clear $(1) || { rm -rf $(1); \
  echo "expected the venv module (on Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
endef
