# Needs Python 3.11, a C compiler, and pip's package index. Everything is made inside this folder.
PYTHON ?= python3.11
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
SERIES ?=
PYTHON312 ?= python3.12
# Of a GPU host, which has a torch of its own and need not have been set up from here.
GPU_PYTHON ?= python3
MINUTES ?= 10

# What is made once and kept: the Triton server, repositories, state and logs of `medvl up`.
export MEDVL_HOME ?= $(CURDIR)/build/medvl
BIN := .venv/bin

.PHONY: help setup demo test test-all test-real-size lint bench bench-segment bench-gpu proto lock lock-images clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## Make the virtual environment and fetch the Triton server
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' bash scripts/setup.sh

demo: setup ## Serve a CT series: report, answer, masks in build/demo (SERIES=folder or .nii.gz)
	@$(BIN)/python scripts/demo.py $(if $(SERIES),--series '$(SERIES)')

test: lint ## Check and test everything but what is heavy
	$(BIN)/python -m pytest

test-all: lint ## Check and test everything, what is heavy as well
	$(BIN)/python -m pytest -m 'not real_size'

test-real-size: setup ## Export, gate and serve the networks at full size; print what each step takes
	$(BIN)/python -m pytest -m real_size

lint: setup ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Print what the served path costs
	$(BIN)/python scripts/bench.py

bench-segment: setup ## Print what a click costs, beside sam2's own predictor
	$(BIN)/python scripts/bench_segment.py

bench-gpu: ## Print what each network costs on an NVIDIA GPU, beside its floor (MINUTES=10, GPU_PYTHON=python3)
	PYTHONPATH="contracts:client:orchestrator:export$${PYTHONPATH:+:$$PYTHONPATH}" \
	  $(GPU_PYTHON) scripts/bench_gpu.py --minutes '$(MINUTES)' --json build/bench/gpu.json

proto: setup ## Generate the stubs of medvl.wire.v1 again
	$(BIN)/python scripts/proto.py

lock: setup ## Resolve the dependencies again
	$(BIN)/python scripts/lock.py

lock-images: setup ## Derive the locks of docker/ from the lock again (PYTHON312=python3.12)
	$(BIN)/python scripts/lock_images.py --python312 '$(PYTHON312)'

clean: ## Remove everything that was made, the environment included
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
