# One word for each thing a developer does. Each needs Python 3.11 or newer and a package index, and makes the rest in .venv.
#
#   make demo         run the gateway on a simulated provider with sample traffic, and leave it up
#                     (ARGS=--exit: stop afterwards; ARGS=--local: on a real model with small weights)
#   make test         every test but the long proofs; what measures time runs alone, in a process of its own
#   make check        formatting, lint, types, layout
#   make bench        throughput, latency, CPU, memory beside a bare relay    make bench-peers    beside other gateways too
#   make assess       precision, recall and speed of the safety assessors, on the texts in bench/
#   make prove        the long proofs (make fuzz: only those of bad input)    make test-backends  with real tracing backends
#   make mutants      plant defects in what keeps money and limits: each must turn a test red
#   make fmt          format and mend what can be mended
#   make lock         resolve the dependencies anew: versions that are at least 7 days old
#   make clean        remove what was made here
#
# PYTHON=python3.12 make … takes another interpreter; it counts when .venv is made.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
TESTING := $(VENV)/.testing
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --exclude-newer "7 days" --custom-compile-command "make lock"

.PHONY: demo test check assess bench bench-peers prove fuzz mutants test-backends fmt lock clean

demo: $(if $(findstring --local,$(ARGS)),$(TESTING),$(RUNTIME))
	$(BIN)/tollkeeper demo $(ARGS)

test: $(TESTING)
	$(BIN)/pytest -m "serial and not long and not backends" $(ARGS) || test $$? -eq 5 # 5: ARGS chose none of these
	$(BIN)/pytest -m "not serial and not long and not backends" -n $(WORKERS) $(ARGS)

check: $(TESTING)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layout.py

bench: $(TESTING)
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(TESTING)
	$(BIN)/python -m bench --peers $(ARGS)

assess: $(TESTING)
	$(BIN)/python -m bench.assess

prove: $(TESTING)
	$(BIN)/pytest -m long --timeout 7200 -o faulthandler_timeout=0 $(ARGS)

fuzz: $(TESTING)
	$(BIN)/pytest -m long --timeout 7200 -o faulthandler_timeout=0 tests/hostile $(ARGS)

mutants: $(TESTING)
	$(BIN)/pytest --timeout 600 -n $(WORKERS) tests/test_mutants.py tests/contract/test_ledger_mutants.py $(ARGS)

test-backends: $(TESTING)
	$(BIN)/pytest -m backends --timeout 1800 -o faulthandler_timeout=0 $(ARGS)

fmt: $(TESTING)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(RUNTIME)
	$(INSTALL) --upgrade uv
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) pyproject.toml -c requirements.lock --extra postgres --extra valkey -o requirements-image.lock
	$(COMPILE) pyproject.toml -c requirements.lock -c requirements-image.lock --extra test --extra local -o requirements-test.lock
	$(COMPILE) --group build -o requirements-build.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .bench .backends
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): pyproject.toml requirements.lock requirements-build.lock
	@echo "Installing into $(VENV): Tollkeeper and the versions in requirements.lock, each held to its hash."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tollkeeper needs Python 3.11 or newer: set PYTHON=python3.x")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) --require-hashes -r requirements.lock -r requirements-build.lock
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(TESTING): $(RUNTIME) requirements-test.lock
	@echo "Installing into $(VENV): what the tests need, the versions in requirements-test.lock, each held to its hash."
	@$(INSTALL) --require-hashes -r requirements-test.lock
	@touch $@
