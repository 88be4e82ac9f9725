# Every target makes what it needs. PYTHON=<interpreter> uses an environment of yours instead of making one.
MODEL ?=
TARGET ?=
PRECISION ?=
ARGS ?=
PROMPT ?= The capital of France is
BUNDLE ?= $(HOME_DIR)/bundles/latest
PORT ?= 5000

HOME_DIR := $(or $(ENGINEWRIGHT_HOME),.enginewright)
VENV := .venv
SYSTEM_PYTHON ?= python3
ifdef PYTHON
READY :=
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
endif

.DEFAULT_GOAL := help
.PHONY: help engine draft generate chat verify bench inspect ui test lint clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(SYSTEM_PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} is too old: Enginewright needs 3.11 or newer; write make SYSTEM_PYTHON=python3.12")'
	$(SYSTEM_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

engine: $(READY) ## Build a verified engine bundle: MODEL=<name, folder, file.gguf> TARGET=cpu PRECISION=<bf16, fp32> ARGS='key=value ...'
	@$(PYTHON) -m pipelines $(if $(MODEL),'model=$(MODEL)') $(if $(TARGET),'target=[$(TARGET)]') $(if $(PRECISION),precision=$(PRECISION)) $(ARGS)

draft: $(READY) ## Train a draft head for MODEL=... and build the engine with it: ARGS='draft.train.device=cuda ...'
	@$(PYTHON) -m pipelines draft=train $(if $(MODEL),'model=$(MODEL)') $(if $(PRECISION),precision=$(PRECISION)) $(ARGS)

generate: export PROMPT := $(value PROMPT)
generate: $(READY) ## Complete PROMPT="..." with the latest bundle, or BUNDLE=<folder>
	@$(PYTHON) -m runtime generate '$(BUNDLE)' --prompt "$$PROMPT" $(ARGS)

chat: $(READY) ## Talk to the latest bundle
	@$(PYTHON) -m runtime chat '$(BUNDLE)' $(ARGS)

verify: $(READY) ## Check a bundle's engine against its reference on this machine
	@$(PYTHON) -m runtime verify '$(BUNDLE)' $(ARGS)

bench: $(READY) ## Measure a bundle's engine on this machine
	@$(PYTHON) -m runtime bench '$(BUNDLE)' $(ARGS)

inspect: $(READY) ## Say what a bundle is
	@$(PYTHON) -m runtime inspect '$(BUNDLE)' $(ARGS)

ui: $(READY) ## Open MLflow on the local store (PORT=5000)
	@$(PYTHON) -m pipelines.ui --port $(PORT) $(ARGS)

test: $(READY) ## Run the whole test suite
	@$(PYTHON) -m pytest $(ARGS)

lint: $(READY) ## Check style and types
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

clean: ## Remove the environment, cached stages and bundles; tracked runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -rf '$(HOME_DIR)/cache' '$(HOME_DIR)/bundles' '$(HOME_DIR)/failed'
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
