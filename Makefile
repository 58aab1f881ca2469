# make            what there is
# make search     install if need be, then tune 64 real trials on the built-in digits
# make test       install if need be, then run every test that is quick
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# The lowest releases that pyproject.toml allows lie over the pinned ones. The pinned torchvision
# does not import beside another torch, so what needs it is left out.
LOWEST := $(CURDIR)/.lowest
LOWEST_TESTS := $(addprefix tests/,cluster engine experiment run scheduler studies)
# Files of tests: most of the time goes into starting Ray, a browser, a database.
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install search test plain lowest test-all faults lint format bench docs clean

help: ## Say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Make .venv with everything that development needs

$(INSTALLED): pyproject.toml constraints.txt tune_softmax/engine/cpu_kernels.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m compileall -q tune_softmax  # as pip does, but for editable installs
	@touch $@

search: $(INSTALLED) ## Tune softmax regression on digits: 64 trials, no download, no GPU
	$(BIN)/tune-softmax search experiments/quickstart.yaml

test: $(INSTALLED) ## Run the tests, but for the slow ones
	$(BIN)/pytest -m "not slow" $(TWO_AT_A_TIME)

plain: $(INSTALLED) ## Run the tests that start Ray, in the plain way
	TUNE_SOFTMAX_FAST_START=0 $(BIN)/pytest -m "ray and not slow" $(TWO_AT_A_TIME)

lowest: $(LOWEST) ## Run the quick tests with the lowest releases allowed; Ray's in both ways
	PYTHONPATH=$(LOWEST) $(BIN)/pytest -m "not slow" -k "not torchvision" $(TWO_AT_A_TIME) \
		$(LOWEST_TESTS)
	PYTHONPATH=$(LOWEST) TUNE_SOFTMAX_FAST_START=0 $(BIN)/pytest -m "ray and not slow" \
		$(TWO_AT_A_TIME) $(LOWEST_TESTS)

$(LOWEST): $(INSTALLED) lowest.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target $@ --requirement lowest.txt
	@touch $@

test-all: $(INSTALLED) ## Run all tests, the slow ones too
	$(BIN)/pytest $(TWO_AT_A_TIME)

faults: $(INSTALLED) ## Kill, freeze, damage and fill up what a search needs; ONLY="driver gcs" for some
	PYTHONPATH=tests $(BIN)/python -m faults $(ONLY)

lint: $(INSTALLED) ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## Measure packs against one trial at a time and the bare products
	$(BIN)/tune-softmax bench packed

docs: $(VENV)/installed-docs ## Build the documentation in docs/_site; a broken link is an error
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_site
	@echo docs/_site/index.html

$(VENV)/installed-docs: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean: ## Remove what the other targets made, but no run
	rm -rf $(VENV) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
