# `make demo` and `make test` need only Python 3.11 or newer with pip, make and git: the first run
# makes .venv and installs the versions that constraints.txt pins.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# What builds symcompile is pinned too: kernels serve the version of XLA that they are compiled for.
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
EXTRAS := torch,jax,flax,optimal,bench,docs,dev

# The first interpreter that runs, is new enough and can make an environment with pip in it.
# Another one: make PYTHON=/path/to/python demo
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c '$(PROBE)' 2>/dev/null && { echo "$$p"; break; }; done)

# More options for pytest: make test PYTEST_ARGS="-k spec -x"
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1 \2/p' $(MAKEFILE_LIST) \
	| while read -r make target text; do printf '  make %-6s %s\n' "$$target" "$$text"; done

demo: $(STAMP) ## compile a layer, check it and time it, with commentary
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## run every test and every docstring example
	@$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

lint: $(STAMP) ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## check types
	@$(BIN)/mypy

# The variable keeps the theme from telling of its successor.
docs: $(STAMP) ## build the site into site/, warnings as errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove the environment, builds and caches
	@rm -rf $(VENV) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose pip does not answer is the rest of a broken-off run: it is made anew.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard backends/symcompile_kernels/*.[ch]pp) backends/symcompile_kernels/build.py
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  python="$(PYTHON)"; \
	  if [ -z "$$python" ]; then \
	    echo "make: no Python >= 3.11 with venv and pip found; name one: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "Installing symcompile with torch, jax and the tools of constraints.txt (minutes, once)"
	@$(PINNED) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -e ".[$(EXTRAS)]"
	@touch $@
