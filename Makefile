# Everything a fresh clone needs: each target sets up .venv by itself, once. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test check bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 make ...  to use another interpreter (3.11 to 3.13)"

quickstart: $(VENV)/.installed  ## from raw text to an assistant, in minutes, on two processor cores
	$(BIN)/ludus run quickstart

test: $(VENV)/.developer  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: $(VENV)/.developer  ## format, lint, types, layers and the unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not law and not oracle and not run and not gpu"

bench: $(VENV)/.installed  ## the quickstart over three seeds, with a table of what it cost and reached
	$(BIN)/python benchmarks/quickstart.py

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find ludus tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: made last, so that a set-up cut short is done again, and older than pyproject.toml when that has changed.
$(VENV)/.installed: pyproject.toml
	@$(call virtual_environment)
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.developer: pyproject.toml
	@$(call virtual_environment)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	@touch $(VENV)/.installed $@

define virtual_environment
$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
  "ludus needs Python 3.11, 3.12 or 3.13, and %s is %d.%d; say which one: make PYTHON=python3.12 ..." \
  % (sys.executable, *v))' \
&& echo "setting up $(VENV); the first time this downloads PyTorch" \
&& $(PYTHON) -m venv $(VENV)
endef
