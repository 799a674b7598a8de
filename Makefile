# Thin on purpose: each target is one command that can be typed by hand.
#   make test ARGS="-m 'not slow'"    make env PYTHON=python3.12

PYTHON ?= python3
VENV = .venv
ARGS =
STAMP = $(VENV)/.installed

help:  ## show this list (the default)
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1	/p' Makefile | awk -F '\t' '{ printf "  make %-13s %s\n", $$1, $$2 }'

env: $(STAMP)  ## make the virtual environment, or bring it up to date

# Touched only when the installation went through, so a broken one is tried again.
$(STAMP): pyproject.toml constraints.txt
	PYTHON="$(PYTHON)" sh scripts/install.sh "$(VENV)"
	touch $@

# The real model is a download: without a network the pocket grid is run all the same, and the target fails at its end.
reproduce: $(STAMP)  ## a first table of the real model, then the pocket grid at its quick size; only what is missing is made
	$(VENV)/bin/blue reproduce --grid workflow/grid-real.yaml $(ARGS); real=$$?; \
	$(VENV)/bin/blue reproduce $(ARGS) && exit $$real

site: $(STAMP)  ## build the report as a static site in build/site
	$(VENV)/bin/blue site $(ARGS)

test: $(STAMP)  ## run the tests, one process a core
	$(VENV)/bin/python -m pytest -n auto --dist worksteal $(ARGS)

test-long: $(STAMP)  ## run what make test leaves out: whole notebooks and grids, killed runs, many examples
	$(VENV)/bin/python -m pytest -n auto --dist worksteal -m "slow or long" $(ARGS)

test-browser: $(STAMP)  ## run the quickstart and the demo in JupyterLab and Voilà in Chromium
	$(VENV)/bin/python -m pytest -n auto --dist worksteal -m browser $(ARGS)

lint: $(STAMP)  ## check style and formatting, notebooks included, and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

mutants: $(STAMP)  ## which small faults do a module's tests notice? ARGS=editing/solvers, models/scoring, ...
	$(VENV)/bin/python scripts/mutants.py $(ARGS)

clean:  ## remove caches and build outputs (neither .venv nor results)
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints -o -name '*.egg-info' \) \
		-type d -prune -exec rm -rf {} +

.PHONY: help env reproduce site test test-long test-browser lint mutants clean
