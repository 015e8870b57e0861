# Everything runs in a virtual environment that `make` sets up from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: help setup demo test test-slow lint format clean

help:
	@echo "make demo       compress the bundled teacher on synthetic speech and show the result (ten minutes)"
	@echo "make test       the tests"
	@echo "make test-slow  full-size models and long runs"
	@echo "make lint       formatting, lint and types"
	@echo "make format     mend what can be mended"

setup: $(READY)

# The second line installs what the build of torch that was found needs beyond its constraints: CUDA's libraries on a
# machine with a GPU, nothing for a CPU build.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("skill-speech needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep -o '^torch==[0-9.]*' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/python -m lab.demo --output demo

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
