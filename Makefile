# Every target makes its own virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEELS ?= .venv-wheels
WHEELS_STAMP := $(WHEELS)/.installed
GPU_WHEEL := onnxruntime-gpu==1.31.1
ZOO_VENV ?= .venv-zoo
ZOO_STAMP := $(ZOO_VENV)/.installed
ZOO ?= build/zoo

.PHONY: help demo test test-wheels test-long test-zoo lint format bench bench-compute perf-analyzer clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch, onnx, onnxruntime, grpcio and the test tools, a minute or two"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,export,dev]'
	@touch $@

demo: $(STAMP) ## export two trained networks, serve them, ask them over gRPC
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## the whole test suite
	@$(BIN)/python -m pytest

lint: $(STAMP) ## ruff, mypy, import-linter, protocol files up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m normfold.protos.compile --check

format: $(STAMP) ## rewrite the code as ruff wants it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## latency and throughput of the two networks, in process and over gRPC
	@$(BIN)/python -m tests.latency

$(WHEELS_STAMP): pyproject.toml constraints.txt
	@echo "installing no onnxruntime, the CPU's, the GPU's without CUDA's libraries, and both, into $(WHEELS), 1.6 GB"
	@for name in none cpu gpu both; do \
		test -x $(WHEELS)/$$name/bin/python || $(PYTHON) -m venv $(WHEELS)/$$name || exit 1; \
		case $$name in none) wheels=;; cpu) wheels=onnxruntime;; gpu) wheels=$(GPU_WHEEL);; \
			both) wheels="onnxruntime $(GPU_WHEEL)";; esac; \
		$(WHEELS)/$$name/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
			--editable . $$wheels || exit 1; \
	done
	@touch $@

test-wheels: $(STAMP) $(WHEELS_STAMP) ## what a server says with each wheel of onnxruntime, with none and with both
	@WHEELS=$(abspath $(WHEELS)) $(BIN)/python -m pytest -m wheels tests/e2e

$(ZOO_STAMP): benches/zoo/requirements.txt
	@test -x $(ZOO_VENV)/bin/python || $(PYTHON) -m venv $(ZOO_VENV)
	@echo "installing other people's networks into $(ZOO_VENV), 3 GB"
	@$(ZOO_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benches/zoo/requirements.txt
	@$(ZOO_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

test-zoo: $(ZOO_STAMP) ## fold the networks of other people's packages
	@$(ZOO_VENV)/bin/python -m benches.zoo.build $(ZOO)
	@ZOO=$(ZOO) $(ZOO_VENV)/bin/python -m pytest tests/zoo

bench-compute: $(ZOO_STAMP) ## other runtimes beside the exported graphs, on the zoo; half an hour once it is built
	@$(ZOO_VENV)/bin/python -m benches.compute $(ZOO) --write

test-long: $(STAMP) ## 50,000 drawn networks, folded and compared with float64
	@NORMFOLD_EXAMPLES=50000 $(BIN)/python -m pytest tests/property --timeout 0

perf-analyzer: $(STAMP) ## fetch Triton's perf_analyzer for the tests marked so (Debian, x86-64)
	@$(BIN)/python tests/e2e/fetch_perf_analyzer.py

clean: ## remove the environment, caches and the demo's repository
	rm -rf $(VENV) $(WHEELS) $(ZOO_VENV) build dist repository .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
