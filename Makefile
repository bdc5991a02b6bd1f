# make demo   data -> search -> registry -> evaluation, on this machine
# make test   the whole test suite
# make soak   faults by the dozen: kills of drivers and workers, lost nodes, servers that go away (an hour)
# make lint   formatter, linter, type checker, order of packages
# make ui     the MLflow UI on what is here
# make clean  remove the environment (not what the commands made)

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test soak lint format ui clean setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "setting up the environment in $(VENV) (once; a few minutes)"
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

# The commands are shown as they run; PATH makes them read as in an activated environment.
demo: export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
demo: $(READY)
	python -m data_prep.navier_stokes data/ns-demo.zarr --train 96 --val 16 --test 32 --seed 0
	python -m mcrnn.tune search_spaces/demo.yaml --new
	python -m mcrnn.evaluate models:/mcrnn-demo@champion

test: $(READY)
	$(PYTHON) -m pytest

soak: $(READY)
	$(PYTHON) -m pytest -m soak

lint: $(READY)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports

format: $(READY)
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

ui: $(READY)
	$(PYTHON) -m mcrnn.ui

clean:
	rm -rf $(VENV)
