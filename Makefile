# The same words on a laptop and in CI. Needs Python 3.11 and nothing else; every target sets up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.up-to-date
RUN_DIR ?= runs/demo
COMPARE_DIR ?= runs/compare
export RUN_DIR COMPARE_DIR methods # recipes read them as "$$RUN_DIR": a folder may have spaces and marks in its name

.PHONY: help setup demo compare test test-all test-random coverage check docs bench up submit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv with the pinned environment (skipped when up to date)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: setup ## the whole chain on the miniature world, into runs/demo; make demo methods=[tcl,ovsegmentor] for other rows
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python pipelines/full.py --config configs/demo.yaml "run_dir=$$RUN_DIR" \
		$(if $(methods),"methods=$$methods")

compare: setup ## the three systems and the training-free rows side by side on the miniature world, three seeds, into runs/compare
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python pipelines/sweep.py --config configs/compare.yaml "run_dir=$$COMPARE_DIR" \
		--seeds 3 --vary 'evaluate.refine=[none, pamr]'

test: setup ## the tests, without those marked slow, in two processes
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: setup ## all tests
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadgroup -m ""

test-random: setup ## the tests in another order each time, by a seed that it prints (--randomly-seed=N repeats it)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -p randomly -n 2 --dist loadgroup

coverage: setup ## the lines of filtering/ and owseg/ that their own tests run; fails below 90 %
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/filtering -n 2 --dist loadgroup \
		--cov=filtering --cov-report=term-missing:skip-covered --cov-fail-under=90
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/owseg -n 2 --dist loadgroup \
		--cov=owseg --cov-report=term-missing:skip-covered --cov-fail-under=90

check: setup ## style, types, import contracts, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/audit.py

docs: setup ## the pages as a site, in site/; asks the network for nothing. For its search: python -m http.server --directory site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open site/index.html"

bench: setup ## side by side with the reference implementations and peers (hours on 2 cores)
	$(BIN)/python benchmarks/curation.py
	$(BIN)/python benchmarks/download.py
	$(BIN)/python benchmarks/pixels.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/pamr.py
	$(BIN)/python benchmarks/tcl_step.py
	$(BIN)/python benchmarks/ovsegmentor_step.py
	$(BIN)/python benchmarks/inference.py

up: setup ## open MLflow on the demo's runs and print its address
	store="$$($(BIN)/python -m cluster.store_uri "$$RUN_DIR")" && $(BIN)/mlflow ui --backend-store-uri "$$store" --port 5000

submit: setup ## start a Ray head here if there is none, and submit the demo to it as a job
	PATH="$(CURDIR)/$(BIN):$$PATH" deploy/submit.sh "$$RUN_DIR"

clean: ## delete what the demo wrote
	rm -rf runs
