# SPDX-License-Identifier: Apache-2.0
# Each target works from a bare clone: what it needs, it sets up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

# One thread per test worker: tiny models run faster so, and two workers share two cores.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check format clean

help:  ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1|/' \
	  | while IFS='|' read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done

setup: $(READY)  ## Make the environment in .venv (again only when its inputs change)
	@echo "Ready: $(BIN)/metarm ($$($(BIN)/python --version))"

# An environment that is there and fits is kept; an outdated or broken one is made anew.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "metarm needs Python 3.11 or newer, but there is no '$(PYTHON)'." >&2; \
	  echo "Name yours: make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "metarm needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@rm -f $(READY)
	@if $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo "Keeping the environment in $(VENV)"; \
	else echo "Making an environment in $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear $(VENV); fi
	@echo "Installing the $$(grep -c '==' requirements.lock) packages of requirements.lock" \
	  "(the first time takes minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	  -r requirements.lock
	@echo "Installing metarm from this folder, editable"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	  --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: setup  ## Run the demo: five arms side by side, results in runs/demo
	@echo "Running configs/demo.yaml into runs/demo"
	@$(BIN)/metarm run --config configs/demo.yaml --output runs/demo

test: setup  ## Run every test, the slow ones too
	@echo "Running all tests ($(WORKERS) workers, one thread each)"
	@$(PYTEST)

test-fast: setup  ## Run the tests that take seconds
	@echo "Running the fast tests ($(WORKERS) workers, one thread each)"
	@$(PYTEST) -m "not slow"

check: setup  ## Check format, lint, types and the layers of imports
	@echo "Checking format (ruff format)"
	@$(BIN)/ruff format --check --quiet . || { \
	  $(BIN)/ruff format --diff . 2>&1 | tail -n 60; echo "Mend it with: make format" >&2; exit 1; }
	@echo "Checking style (ruff check)"
	@$(BIN)/ruff check --quiet .
	@echo "Checking types (mypy --strict)"
	@$(BIN)/mypy --strict
	@echo "Checking the layers (lint-imports)"
	@$(BIN)/lint-imports --no-logo

format: setup  ## Format the code and mend what ruff can mend
	@echo "Formatting"
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## Remove the environment and caches; runs/ stays
	@echo "Removing $(VENV) and caches"
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
	  build dist
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
