# FlowStone for Celery. `make` alone lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BENCH_VENV := .bench-venv
BENCH ?= chain
BENCH_PEERS ?= 'dbos>=3'

# Paths are relative and programs are started by module where they can be: a checkout in a path with spaces works.
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready
BENCH_READY := $(BENCH_VENV)/.ready
# By file: a module's tests share its servers and its project.
TESTS := $(RUN) pytest -n 2 --dist loadfile

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-15s %s\n", $$1, $$2 }'

.PHONY: venv
venv: $(READY) ## Make .venv with everything that development needs

.PHONY: demo
demo: $(READY) ## Run the main job on two real workers, one of which is killed; nothing else need be installed
	$(VENV)/bin/flowstone demo

.PHONY: check
check: $(READY) ## Formatting, lint, types and layers
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command as lint; lint()'

.PHONY: test
test: $(READY) ## All tests but the long fault tests, on embedded servers
	$(TESTS) -m "not faults" $(ARGS)

.PHONY: test-faults
test-faults: $(READY) ## The long form: kills, stops and restarts of everything, at every crash point; the figures of the goals at its end
	$(RUN) pytest -m "faults or goals" --timeout 900 $(ARGS)

.PHONY: test-services
test-services: export FLOWSTONE_TEST_DATABASE_URL ?= postgresql://postgres:postgres@127.0.0.1:5432/postgres
test-services: export FLOWSTONE_TEST_BROKER_URL ?= redis://127.0.0.1:6379/15
# Without a RabbitMQ its tests are skipped and say so; everything else needs none.
test-services: export FLOWSTONE_TEST_AMQP_URL ?= $(shell (: </dev/tcp/127.0.0.1/5672) 2>/dev/null && echo amqp://guest:guest@127.0.0.1:5672//)
test-services: $(READY) ## The tests on your own servers: FLOWSTONE_TEST_DATABASE_URL, FLOWSTONE_TEST_BROKER_URL, FLOWSTONE_TEST_AMQP_URL
	$(TESTS) -m "not faults" $(ARGS)

.PHONY: bench-venv
bench-venv: $(BENCH_READY) ## Make .bench-venv with the peers that benchmarks compare with

.PHONY: bench
bench: $(BENCH_READY) ## Run one benchmark against its peers: make bench BENCH="latency --json"
	$(BENCH_VENV)/bin/python -m benchmarks $(BENCH)

.PHONY: docs
docs: $(READY) ## Write the reference pages that come from the code
	$(VENV)/bin/python docs/reference/generate.py

$(READY): pyproject.toml
	@$(call require_python)
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(BENCH_READY): pyproject.toml
	@$(call require_python)
	"$(PYTHON)" -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]' $(BENCH_PEERS)
	@touch $@

define require_python
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "FlowStone needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
endef
