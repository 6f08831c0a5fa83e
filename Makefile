PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test wheel slow lint docs clean

# The whole loop on the data that ships with the package.
demo: $(VENV)/demo.stamp
	$(BIN)/mixbit demo

# Processes of tests import torch again and again: compiled once, even where the environment says not to, out of the tree.
test slow: export PYTHONDONTWRITEBYTECODE =
test slow: export PYTHONPYCACHEPREFIX = $(CURDIR)/$(VENV)/pycache

test: lint
	$(BIN)/pytest -q -n auto --maxprocesses=4 --dist loadfile

# The built wheel alone, in a fresh environment with core dependencies only, away from the sources.
wheel:
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip wheel -q --no-deps -w build/wheel/dist .
	build/wheel/bin/python -m pip install -q --no-compile -c constraints.txt build/wheel/dist/*.whl
	cd build/wheel && bin/mixbit list targets && bin/mixbit demo

# Minutes more: whole demos and studies, other schemes, and the tests of the benchmarks.
slow: $(VENV)/dev.stamp
	$(BIN)/pytest -q -m slow
	$(BIN)/pytest -q benchmarks

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation, into site/: a warning is an error, and so is a link that leads nowhere.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) build dist site .hypothesis .pytest_cache .ruff_cache

# What is installed follows the two files that say what it is; a second run installs nothing. One after the other.
$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[onnxruntime,openvino]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(VENV)/dev.stamp
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[docs]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
