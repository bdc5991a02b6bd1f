# make demo   data -> search -> registry -> evaluation, on this machine
# make test   the whole test suite
# make soak   faults by the dozen: kills of drivers and workers, lost nodes, servers that go away, and twenty orders of
#             all that may happen to one search (some hours)
# make lint   formatter, linter, type checker, order of packages
# make docs   the documentation as a site in build/docs/site
# make ui     the MLflow UI on what is here
# make clean  remove the environment (not what the commands made)

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
# One more than the cores that the tests are made for: those of Ray wait a third of the time.
TEST_PROCESSES := 3

.PHONY: demo test soak lint format docs ui clean setup

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
	$(PYTHON) -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal --durations 10

soak: $(READY)
	$(PYTHON) -m pytest -m soak --durations 10

lint: $(READY)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports

format: $(READY)
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

$(DOCS_READY): $(READY)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $(DOCS_READY)

docs: $(DOCS_READY)
	$(PYTHON) examples/prepare.py
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
	@echo "open build/docs/site/index.html"

ui: $(READY)
	$(PYTHON) -m mcrnn.ui

clean:
	rm -rf $(VENV)
