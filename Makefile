# Every target makes its own virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEELS ?= .venv-wheels
WHEELS_STAMP := $(WHEELS)/.installed
LOWEST ?= .venv-lowest
LOWEST_STAMP := $(LOWEST)/.installed
GPU_WHEEL := onnxruntime-gpu==1.31.1
ZOO_VENV ?= .venv-zoo
ZOO_STAMP := $(ZOO_VENV)/.installed
ZOO ?= build/zoo
AUDIT_VENV ?= .venv-audit
AUDIT_STAMP := $(AUDIT_VENV)/.installed
DOCS_VENV ?= .venv-docs
RAY_VENV ?= .venv-ray
RAY_STAMP := $(RAY_VENV)/.installed
DOCS_STAMP := $(DOCS_VENV)/.installed

.PHONY: help demo test test-wheels test-lowest test-long fuzz-export test-zoo export-zoo soak chaos fuzz lint format bench bench-compute \
	cuda-parts perf-analyzer interop ray image lock audit release docs clean

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
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

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

$(LOWEST_STAMP): pyproject.toml locked/lowest.py
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@echo "installing the lowest version of every package into $(LOWEST), 6 GB with torch for CUDA"
	@$(LOWEST)/bin/python locked/lowest.py > $(LOWEST)/lowest.txt
	@$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/lowest.txt \
		--editable '.[cpu,export,otel,png,signing]' hypothesis pytest pytest-timeout pytest-xdist pyyaml trustme
	@touch $@

# Not tests/cli: it reads stderr as the test runner of click 8.2 and later gives it. Not what a client that is forgotten
# or closed leaves through grpcio: with grpcio 1.66 a callback of its poller is logged, and connections stay.
test-lowest: $(LOWEST_STAMP) ## tests with the lowest version of every package that pyproject.toml allows (Python 3.11)
	@$(LOWEST)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile tests/test_examples.py tests/export/graphs \
		tests/serving/access tests/serving/client tests/serving/metrics tests/serving/rpc tests/serving/wire \
		-k 'not (grpcio and (forgotten or closed))'

$(ZOO_STAMP): benches/zoo/requirements.txt
	@test -x $(ZOO_VENV)/bin/python || $(PYTHON) -m venv $(ZOO_VENV)
	@echo "installing other people's networks into $(ZOO_VENV), 3 GB"
	@$(ZOO_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benches/zoo/requirements.txt
	@$(ZOO_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

test-zoo: $(ZOO_STAMP) ## fold the networks of other people's packages
	@$(ZOO_VENV)/bin/python -m benches.zoo.build $(ZOO)
	@ZOO=$(ZOO) $(ZOO_VENV)/bin/python -m pytest tests/zoo

export-zoo: $(ZOO_STAMP) ## more networks of other packages through the export; an hour or two, goes on where it stopped
	@$(ZOO_VENV)/bin/python -m benches.zoo.export benches/zoo/EXPORTS

bench-compute: $(ZOO_STAMP) ## other runtimes beside the exported graphs, on the zoo; half an hour once it is built
	@$(ZOO_VENV)/bin/python -m benches.compute $(ZOO) --write

cuda-parts: $(STAMP) ## the wheels that a machine with a GPU lacks, in loads below build/cuda; see CONTRIBUTING.md
	@$(BIN)/python -m tests.cuda.parts $(GPU_WHEEL) hpack

test-long: $(STAMP) ## 50,000 drawn networks, folded and compared with float64
	@NORMFOLD_EXAMPLES=50000 $(BIN)/python -m pytest tests/property --timeout 0

DRAWS ?= 5000
fuzz-export: $(STAMP) ## networks of mixed operators through the whole export; DRAWS=5000 FIRST=0 BITS=any (fp16, int8)
	@$(BIN)/python -m tests.property.fuzz --draws $(DRAWS) --first $(or $(FIRST),0) $(if $(BITS),--bits $(BITS))

soak: $(STAMP) ## 1,000 reloads in an hour on each frontend, and a leak that must be caught; writes docs/reliability.md
	@$(BIN)/python -m tests.soak

fuzz: $(STAMP) ## a million messages, a million connections, 100,000 files; writes docs/reliability.md; hours
	@$(BIN)/python -m tests.fuzz --write

chaos: $(STAMP) ## kill, flood and damage servers under load, start a thousand; writes docs/reliability.md; two hours
	@$(BIN)/python -m tests.reliability --write

perf-analyzer: $(STAMP) ## fetch Triton's perf_analyzer for the tests marked so (Debian, x86-64)
	@$(BIN)/python tests/e2e/fetch_perf_analyzer.py

interop: $(STAMP) ## grpc-go and grpc-js as clients, behind nginx, haproxy and Envoy (Debian 12, x86-64, with node)
	@$(BIN)/python tests/e2e/fetch_interop.py build/interop
	@$(BIN)/python -m pytest -m interop tests/e2e tests/deploy

$(RAY_STAMP): deploy/ray/requirements.txt
	@test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	@echo "installing Ray into $(RAY_VENV), 500 MB"
	@$(RAY_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement deploy/ray/requirements.txt --editable '.[cpu]'
	@touch $@

ray: $(STAMP) $(RAY_STAMP) ## two replicas on a local cluster of Ray Serve, one of which is killed
	@RAY_PYTHON=$(abspath $(RAY_VENV))/bin/python $(BIN)/python -m pytest -m ray tests/deploy

image: $(STAMP) ## what deploy/Dockerfile builds, in a chroot without Docker, and tried; root, Debian, debootstrap
	@$(BIN)/python tests/deploy/image.py build/image

lock: $(STAMP) ## write locked/serving.txt: what a server installs, with the SHA-256 of each wheel
	@$(BIN)/python locked/write.py $(BIN)/pip

$(AUDIT_STAMP): locked/tools.txt
	@$(PYTHON) locked/tools.py $(AUDIT_VENV)

release: $(AUDIT_STAMP) ## sdist and wheel into dist/, checked, nothing uploaded; DRAFT=1 before the changelog has the version
	@$(AUDIT_VENV)/bin/python locked/release.py $(if $(DRAFT),--draft)
	@$(AUDIT_VENV)/bin/cyclonedx-py requirements --output-format JSON --output-file dist/sbom.json locked/serving.txt

audit: ## known weaknesses of what a server installs, and build/sbom.json, the list of its parts
	@$(PYTHON) locked/tools.py $(AUDIT_VENV); code=$$?; \
	if test $$code -eq 3; then echo "not audited: the programs for it cannot be reached from here"; exit 0; fi; \
	test $$code -eq 0 && mkdir -p build && \
	$(AUDIT_VENV)/bin/cyclonedx-py requirements --output-format JSON --output-file build/sbom.json locked/serving.txt && \
	$(AUDIT_VENV)/bin/python locked/audit.py locked/serving.txt

$(DOCS_STAMP): pyproject.toml constraints.txt
	@test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS_STAMP) ## the site of the manual into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

clean: ## remove the environment, caches and the demo's repository
	rm -rf $(VENV) $(WHEELS) $(LOWEST) $(ZOO_VENV) $(AUDIT_VENV) $(DOCS_VENV) $(RAY_VENV) build dist repository .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
