# Everything a newcomer types; `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format benchmark

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## make the virtual environment and install the tested versions

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup  ## train and adapt on the toy world, print the mIoU table (minutes; goes on where it was stopped)
	$(BIN)/python tools/train.py experiment=pin2pan_toy resume=true

test: setup  ## the daily tests (minutes)
	$(BIN)/python -m pytest

test-slow: setup  ## the longer tests
	$(BIN)/python -m pytest -m slow

lint: setup  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## mend style and format where it can be done automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: setup  ## ratios of the deformable convolution's backends on this machine
	$(BIN)/python tools/benchmark.py
