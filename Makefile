# `make demo` shows it working, `make test` checks everything that CI checks. Both need Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO := .cache/demo

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@echo "make demo    real faces, labelled, on a page to look at (no PyTorch needed)"
	@echo "make test    everything that CI runs: ruff, mypy, pytest"
	@echo "make lint    the same without pytest"
	@echo "make clean   remove .venv and .cache"

$(VENV)/runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fmengine needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing the CPU runtime into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/develop: $(VENV)/runtime tests/requirements.txt
	@echo "installing training, export and the checks into $(VENV) (PyTorch: gigabytes, a minute or more) …"
	@$(PIP) --editable '.[cpu,train,export,bench]' --requirement tests/requirements.txt
	@touch $@

$(DEMO)/pictures: demo/gather.py | $(VENV)/runtime
	@echo "gathering pictures from the scikit-image wheel …"
	@$(PIP) --target $(DEMO)/wheel --no-deps --upgrade scikit-image
	@$(BIN)/python demo/gather.py $(DEMO)/wheel $@

# Rows on stdout, and a page beside them. Exit code 3 would mean that a picture failed.
demo: $(VENV)/runtime $(DEMO)/pictures
	@$(BIN)/fmengine infer --batch $(DEMO)/pictures --report $(DEMO)/report.html --overwrite
	@echo "look at $(abspath $(DEMO))/report.html"

lint: $(VENV)/develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint $(DEMO)/pictures
	$(BIN)/pytest

clean:
	rm -rf $(VENV) .cache
