# make demo    the whole job on made scenes, minutes on two CPU cores
# make test    lint, types and the fast tests
# make test-slow    kills, several processes, real benches, wheels in fresh environments
# make test-full    presets and public checkpoints at full size: an hour or more, 12 GB of memory, 20 GB of disk
# make docs    the documentation site in ./site, with its command reference
# make gpu-check    on a CUDA machine: parity, latency and training, one JSON in ./gpu_check;
#                   TensorRT with EXTRAS=cuda,tensorrt,train, options as in GPU_CHECK='--preset b --out DIR'
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= cpu,openvino,report,train,dev

.PHONY: demo test test-slow test-full gpu-check docs lint types check clean

demo: $(VENV)/.ready
	$(BIN)/rsrefseg demo

test: lint types check

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

check: $(VENV)/.ready
	$(BIN)/pytest -n logical --dist loadfile

test-slow: $(VENV)/.ready
	$(BIN)/pytest tests/slow

test-full: $(VENV)/.ready
	$(BIN)/pytest -m full_size -o faulthandler_timeout=3600 tests/slow

gpu-check: EXTRAS = cuda,train
gpu-check: $(VENV)/.ready
	bash bench/gpu_check.sh $(GPU_CHECK)

docs: $(VENV)/.docs
	$(BIN)/python -m typer rsrefseg/cli.py utils docs --name rsrefseg --output docs/reference/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.ready: INSTALLED = $(EXTRAS)
$(VENV)/.docs: INSTALLED = docs
$(VENV)/.ready $(VENV)/.docs: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(INSTALLED)]'
	@touch $@

clean:
	rm -rf $(VENV) build dist site docs/reference/cli.md *.egg-info .mypy_cache .ruff_cache .pytest_cache
