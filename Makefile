# The same targets are run by people and by CI.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help triton-env setup demo sample demo-model test test-all lint check bench clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel

$(VENV)/.serve: $(VENV)/bin/python pyproject.toml
	$(PIP) --editable '.[serve,dicom]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt peers.txt
	$(PIP) 'torch==2.13.0'
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(PIP) --constraint constraints.txt --no-deps --requirement peers.txt
	touch $@

setup: $(VENV)/.dev  ## the developer's environment in .venv, with the CPU build of torch

demo: $(VENV)/.serve  ## segment a real CT through the gateway and stay up at http://127.0.0.1:8000 (ARGS=--once ends)
	$(BIN)/hilum demo $(ARGS)

sample: $(VENV)/bin/python  ## fetch the real CT sample into .samples
	test -x $(BIN)/hilum || $(PIP) --editable .
	$(BIN)/python -m hilum_client.sample .samples

demo-model: $(VENV)/.dev sample  ## rebuild the demo model from nothing
	$(BIN)/hilum train --recipe demo --data .samples --out runs/demo
	$(BIN)/hilum export runs/demo --repository model_repository --data .samples --int8

triton-env: .venv-triton/.done  ## a real Triton for the tests, in an environment of its own

.venv-triton/.done:
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install --quiet --disable-pip-version-check nvidia-pytriton==0.7.0 'openvino>=2026.4' 'onnxruntime>=1.24' 'numpy<2'
	touch $@

lint: $(VENV)/.dev  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy client inference search export server benchmark tests deploy/image
	$(BIN)/lint-imports

test: lint  ## the suite, against the installed wheel
	$(BIN)/python tests/run_on_wheel.py -q $(ARGS)

test-all: lint  ## the suite with what is slow
	$(BIN)/python tests/run_on_wheel.py -q -m '' $(ARGS)

check: lint  ## the suite on the checkout, quicker to start
	$(BIN)/pytest -q $(ARGS)

bench: $(VENV)/.dev  ## the figures of docs/benchmark.md
	$(BIN)/hilum benchmark volume $(ARGS)

clean:  ## remove what was built
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache demo-output
