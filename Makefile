# Everything runs in a virtual environment that `make` sets up from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := $(BIN)/pip --quiet --disable-pip-version-check
# As many processes as there are cores, four at most (each takes about 2 GB), with one thread each: small models do not gain
# by a second one. The tests of a file stay together, for what they share is made once in a process; in the order of their
# names, since by number of tests the longest files of the slow ones, with few tests each, would come last.
JOBS ?= logical
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-slow test-endurance lint format docs clean

help:
	@echo "make demo       compress the bundled teacher on synthetic speech and show the result (ten minutes)"
	@echo "make test       the tests"
	@echo "make test-slow  full-size models and long runs"
	@echo "make test-endurance  hundreds of kills and thousands of damaged files"
	@echo "make lint       formatting, lint and types"
	@echo "make format     mend what can be mended"
	@echo "make docs       the documentation site, build/site"

setup: $(READY)

# torch comes first and in two steps, because pip prefers a build whose hash an index states: downloaded without hashes it
# is the build that this machine offers (a CPU build in a local wheel folder, say), and its hash is checked when it is
# installed. The line after the constraints brings what that build needs beyond them: CUDA's libraries, or nothing.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("skill-speech needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@sed -n '/^torch==/,/[^\\]$$/p' constraints.txt > $(VENV)/torch.txt
	@$(PIP) download --no-deps --dest $(VENV)/wheels "$$(grep -o '^torch==[0-9.]*' $(VENV)/torch.txt)"
	@$(PIP) install --no-index --find-links $(VENV)/wheels --require-hashes --no-deps -r $(VENV)/torch.txt
	@rm -r $(VENV)/wheels
	@$(PIP) install --require-hashes --no-deps -r constraints.txt
	@$(PIP) install "$$(grep -o '^torch==[0-9.]*' $(VENV)/torch.txt)"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/python -m lab.demo --output demo

test: $(READY)
	$(PYTEST)

test-slow: $(READY)
	$(PYTEST) -m "slow and not kill and not fuzz"

test-endurance: $(READY)
	$(PYTEST) -m "slow and (kill or fuzz)"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every warning is an error, but not with --quiet, which counts none. The variable silences the theme's advertisement of
# its successor.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "built build/site; to read it: $(BIN)/python -m http.server --directory build/site"

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
