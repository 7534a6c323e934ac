# Everything starts from a fresh clone: each target sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One intra-op thread per process: faster for small models, and what makes digests equal.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
# What is imported first is compiled, once: without, where this is set, every process of a test would compile all of torch anew.
export PYTHONDONTWRITEBYTECODE :=
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: setup demo test test-gpu docs reproduce bench notebooks types lint clean

setup: $(VENV)/.done  ## virtual environment with pinned packages

$(VENV)/.done: pyproject.toml constraints.txt
	@echo "Making $(VENV), once; two minutes or so."
	@# Not compiled: most of it is never imported, and the rest is compiled by who does first.
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch ..."
	@$(BIN)/pip install --quiet --quiet --no-compile --constraint constraints.txt torch
	@echo "Installing fedsim and what it needs ..."
	$(BIN)/pip install --quiet --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

demo: setup  ## run the quickstart scenario
	$(BIN)/fedsim run scenarios/quickstart.toml

test: setup  ## all tests but the slow ones, on two cores
	$(BIN)/python -m pytest -n 2

test-gpu: setup  ## the laws of the engine on a GPU, by a stand-in where there is none
	$(BIN)/python -m pytest -n 0 -rs tests/laws/test_gpu.py tests/laws/test_graphs.py tests/laws/test_fingerprints.py tests/laws/test_devices.py tests/laws/test_memory.py

docs: setup  ## the documentation, as a site in site/; nothing is fetched when it is read
	@$(BIN)/pip install --quiet --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

reproduce: setup  ## published results, minutes to an hour; wants FEDSIM_DATA
	$(BIN)/python -m pytest -m slow tests

lint: setup  ## ruff, by the rules of pyproject.toml
	$(BIN)/ruff check fedsim tests analysis clients docs conftest.py

types: setup  ## pyright, strict
	$(BIN)/pyright

bench: setup  ## the figures of analysis/benchmarks/RESULTS.md
	$(BIN)/python -m analysis.benchmarks.overhead
	$(BIN)/python -m analysis.benchmarks.scale
	$(BIN)/python -m analysis.benchmarks.online

notebooks: setup  ## run analysis/*.ipynb and store them with their output, an image beside each figure; wants chromium
	$(BIN)/python -m analysis.render

clean:
	rm -rf $(VENV) runs site build *.egg-info
