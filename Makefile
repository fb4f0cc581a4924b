# One door to everything: `make help` lists the targets. Needs Python 3.11 or later and a package index;
# a C compiler makes the codecs fast, git is not needed.

PYTHON ?= python3
PYTEST_ARGS ?=
TEST_JOBS ?= 2
DEMO_ARGS ?=
FUZZ_COUNT ?= 1000000
FUZZ_SEED ?= 1

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODEC_TESTS := tests/golden tests/contract/test_codecs.py tests/contract/test_codec_edges.py \
  tests/property/test_codec_properties.py tests/unit/codecs/test_native_twin.py \
  tests/unit/codecs/test_packing.py tests/unit/codecs/test_product.py tests/unit/codecs/test_indices.py \
  tests/property/test_split_messages.py tests/fuzz
SOURCES := schemas fedge server_app device_app tests benchmarks setup.py

# The sanitizers' run-time library comes first, and libstdc++ with it or it misses the exceptions of torch. Every object
# gets memory of its own (PYTHONMALLOC). Leaks are not looked for: Python and NumPy keep memory until they end; that the
# fuzzer's process does not grow is its own assertion. pytest must let the report through (--capture=sys).
SANITIZED = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=halt_on_error=1:detect_leaks=0:quarantine_size_mb=16 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  PYTHONMALLOC=malloc PYTHONSAFEPATH=1 PYTHONPATH=build/sanitize/lib:. $(BIN)/python

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup system-packages demo simulate check format test fuzz sanitize \
  aarch64-packages aarch64-check bench schemas freeze wheel clean distclean

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with everything, versions as in constraints.txt

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard fedge/codecs/kernels/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  f"fedge needs Python 3.11 or later, got {v[0]}.{v[1]}; try: make PYTHON=python3.11 setup")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server,device,bench,dev]'
	@$(BIN)/python -c 'from fedge.codecs import native_available as ok, native_status as say; \
	  print(say() if ok() else say() + "\n  Install a C compiler (gcc or clang) and run: make clean setup")'
	@touch $@

system-packages:  ## Say which system packages are missing (fedge needs none)
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "Python lacks venv: install the python3-venv package of your system"; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || \
	  echo "No C compiler: the codecs will run in NumPy, with the same bytes and many times slower."
	@echo "System packages: nothing is missing that fedge needs."

demo: $(STAMP)  ## A whole federation on this machine (DEMO_ARGS="--rounds 20 --faults")
	$(BIN)/fedge demo $(DEMO_ARGS)

simulate: $(STAMP)  ## The same plan without a network
	$(BIN)/fedge simulate examples/wisdm.toml

check: $(STAMP)  ## Style, types, and the direction of imports
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Lay the code out as `make check` wants it
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

test: $(STAMP)  ## All tests, in two processes (PYTEST_ARGS="tests/unit -x", TEST_JOBS=1)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

fuzz: $(STAMP)  ## A million damaged payloads and streams (FUZZ_COUNT, FUZZ_SEED)
	$(BIN)/python -m tests.fuzz.fuzz_payloads --count $(FUZZ_COUNT) --seed $(FUZZ_SEED)

sanitize: $(STAMP)  ## The codecs' tests and FUZZ_COUNT damaged payloads under ASan and UBSan (gcc)
	rm -rf build/sanitize
	CC=gcc FEDGE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	@$(SANITIZED) -c 'from fedge.codecs.native import kernels, native_status as say; print(say(), kernels.__file__); \
	  assert "build/sanitize/" in kernels.__file__'
	$(SANITIZED) -m pytest -p no:cacheprovider --capture=sys $(CODEC_TESTS)
	$(SANITIZED) -m tests.fuzz.fuzz_payloads --exact-buffers --count $(FUZZ_COUNT) --seed $(FUZZ_SEED)

aarch64-packages:  ## Say which system packages aarch64-check needs
	@tests/aarch64/check packages

aarch64-check: $(STAMP)  ## The codecs on an emulated aarch64: the same bits (AARCH64_TESTS, AARCH64_CASES)
	@tests/aarch64/check

bench: $(STAMP)  ## The benchmarks behind the numbers in the docs
	$(BIN)/fedge bench codecs

schemas: $(STAMP)  ## Write docs/schemas from the models
	$(BIN)/python -m schemas.export docs/schemas

freeze: $(STAMP)  ## Write constraints.txt from what .venv holds
	@{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	@mv constraints.new constraints.txt

wheel: $(STAMP)  ## Build dist/: a source archive and a wheel
	$(BIN)/python -m build --no-isolation

clean:  ## Remove what was built, .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache $(STAMP)
	rm -f fedge/codecs/*.so
	find schemas fedge server_app device_app tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove .venv too
	rm -rf $(VENV)
