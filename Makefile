# volseg needs Python 3.11 or newer and make; everything else is installed into .venv.
#
#   make demo     phantom dataset -> preprocess -> train -> predict -> evaluate -> report, in demo/
#   make test     every check that CI runs
#
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# As many workers as processors. Each takes one to two GB, and so no more than four.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

MAKEFLAGS += --no-print-directory
# Tests start hundreds of programs; where Python may write none, each compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help demo test test-long install lint format bench clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1|/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: install  ## Run the whole pipeline on a generated dataset; results in demo/
	@$(BIN)/volseg demo -o demo

# Whole programs are tested where they have most trouble: Ctrl-C ignored as under nohup, a temporary folder with a path
# longer than a socket's may be, and a locale and output that are not UTF-8.
test: lint  ## Run every check that CI runs: lint, types, layers, tests
	@$(PYTEST) --ignore tests/system
	@place=$$(mktemp -d) && long=$$place/$$(printf '%080d' 0) && mkdir "$$long" && trap '' INT && \
	    { TMPDIR=$$long LC_ALL=C PYTHONIOENCODING=latin-1 $(PYTEST) tests/system; code=$$?; rm -rf "$$place"; exit $$code; }

test-long: install  ## Run the tests that have a long form in it: fuzzing and kills, some hours
	@VOLSEG_LONG=1 $(BIN)/python -m pytest -m long --timeout 36000

install: $(STAMP)  ## Create .venv and install the pinned environment

lint: install  ## Check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict pipeline
	@$(BIN)/lint-imports

format: install  ## Reformat the code and apply safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install  ## Measure every performance claim; slow
	@for script in benchmarks/*.py; do \
	    echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

clean:  ## Remove .venv, caches and the demo
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is younger than the files it depends on if and only if the last installation of them was completed.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || \
	    { echo "Python: expected 3.11 or newer as '$(PYTHON)', found none. Install it, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python: expected 3.11 or newer, got $$($(PYTHON) --version 2>&1). Install a newer one and name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	    { echo "Python: expected the modules venv and ensurepip, which Debian and Ubuntu keep apart. Run: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV). The first time this takes some minutes, most of them for PyTorch."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # pip compiles on one processor; some files are no Python 3
	@touch $(STAMP)
