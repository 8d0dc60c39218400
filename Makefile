# Every target sets up what it needs: a virtual environment in .venv, with the package installed from this checkout.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

OLDEST := .venv-oldest

# Tests run one worker a core, each with one thread: faster than one worker with all threads.
WORKERS ?= 2
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test test-all test-oldest lint format bench bench-train bench-medical bench-segment bench-gpu docs wheel clean

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench,docs]'
	touch $@

demo: $(READY)  ## train three flagship backbones on real scans, evaluate them, draw pictures
	$(BIN)/python tools/demo.py

test: $(READY)  ## the fast suite
	$(PYTEST)

test-all: $(READY)  ## the fast suite and the slow tests
	$(PYTEST) -m 'not gpu'

test-oldest:  ## the fast suite with the oldest supported torch, in an environment of its own
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[dev]' --constraint tests/constraints-oldest.txt
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(READY)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## model and operator benchmarks on this machine's CPU
	$(BIN)/python tools/bench_models.py
	$(BIN)/python kernels/benchmarks/run.py --device cpu

bench-train: $(READY)  ## small detectors trained for equal times on generated shapes; goes on where it was stopped
	$(BIN)/python tools/bench_detection_training.py

bench-medical: $(READY)  ## small segmentation networks trained for equal CPU times on generated abdomens; goes on where it was stopped
	$(BIN)/python tools/bench_medical_training.py
	$(BIN)/python tools/bench_medical_training.py --part upsampling --seeds 3

bench-segment: $(READY)  ## small segmenters trained by the clock on generated shapes; goes on where it was stopped
	$(BIN)/python tools/bench_segmentation_training.py

bench-gpu: $(READY)  ## operator benchmarks on a CUDA device
	$(BIN)/python kernels/benchmarks/run.py --device cuda

docs: $(READY)  ## the documentation site, in site/
	$(BIN)/mkdocs build --strict

wheel: $(READY)  ## dist/attnzoo-*.whl
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist site work_dirs demo_out .pytest_cache .ruff_cache .mypy_cache
