# Every target makes what it needs. PYTHON=<interpreter> uses an environment of yours instead of making one.
MODEL ?=
TARGET ?=
PRECISION ?=
ARGS ?=
PROMPT ?= The capital of France is
BUNDLE ?= $(HOME_DIR)/bundles/latest
OUT ?=
URL ?=
PORT ?=

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
.PHONY: help engine draft plan generate chat verify bench profile tune load soak inspect doctor diff archive sign deploy-files export-hf publish pull promote rollback serve ui clean-cache test test-gpu bench-gpu lint clean
ENGINEWRIGHT = $(PYTHON) -m pipelines.enginewright
BUILD_OPTIONS = $(if $(MODEL),--model '$(MODEL)') $(if $(TARGET),--target '$(TARGET)') $(if $(PRECISION),--precision '$(PRECISION)')

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(SYSTEM_PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} is too old: Enginewright needs 3.11 or newer; write make SYSTEM_PYTHON=python3.12")'
	$(SYSTEM_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

engine: $(READY) ## Build a verified engine bundle: MODEL=<name, folder, file.gguf> TARGET=<cpu,cuda,tensorrt_rtx> PRECISION=<bf16, fp16; fp32 with TARGET=cpu> ARGS='key=value ...'
	@$(ENGINEWRIGHT) engine $(BUILD_OPTIONS) $(ARGS)

plan: $(READY) ## Say what a build would do, take and need; takes what engine takes and changes nothing
	@$(ENGINEWRIGHT) plan $(BUILD_OPTIONS) $(ARGS)

draft: $(READY) ## Train a draft head for MODEL=... and build the engine with it: ARGS='draft.train.device=cuda ...'
	@$(ENGINEWRIGHT) engine $(BUILD_OPTIONS) draft=train $(ARGS)

generate: export PROMPT := $(value PROMPT)
generate: $(READY) ## Complete PROMPT="..." with the latest bundle, or BUNDLE=<folder>
	@$(ENGINEWRIGHT) generate '$(BUNDLE)' --prompt "$$PROMPT" $(ARGS)

chat: $(READY) ## Talk to the latest bundle
	@$(ENGINEWRIGHT) chat '$(BUNDLE)' $(ARGS)

verify: $(READY) ## Check a bundle's engine against its reference on this machine
	@$(ENGINEWRIGHT) verify '$(BUNDLE)' $(ARGS)

bench: $(READY) ## Measure a bundle's engine on this machine
	@$(ENGINEWRIGHT) bench '$(BUNDLE)' $(ARGS)

profile: $(READY) ## Say where a bundle's engine spends time and memory here, op by op: ARGS='--batch-size 8'
	@$(ENGINEWRIGHT) profile '$(BUNDLE)' $(ARGS)

tune: $(READY) ## Measure which kernels of a bundle are fastest on this GPU, and keep it in the bundle
	@$(ENGINEWRIGHT) tune '$(BUNDLE)' $(ARGS)

load: $(READY) ## Profile any OpenAI endpoint: URL=<http://host:8000/v1>, the key in OPENAI_API_KEY, ARGS='--users 16 ...'
	@$(ENGINEWRIGHT) load $(if $(URL),--url '$(URL)') $(ARGS)

soak: $(READY) ## Use a server of a tiny model badly for MINUTES=10, and check what it is left with; or BUNDLE=<a small one>
	@$(ENGINEWRIGHT) soak '$(if $(filter command line environment,$(origin BUNDLE)),$(BUNDLE),tests/runtime/golden/schema-1/bundle)' $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

inspect: $(READY) ## Say what a bundle is
	@$(ENGINEWRIGHT) inspect '$(BUNDLE)' $(ARGS)

doctor: $(READY) ## Say what can be built and run here; with BUNDLE=<folder>, whether that bundle runs here
	@$(ENGINEWRIGHT) doctor $(if $(filter command line environment,$(origin BUNDLE)),--bundle '$(BUNDLE)') $(ARGS)

diff: $(READY) ## Compare two bundles: A=<folder> B=<folder>
	@$(ENGINEWRIGHT) diff '$(A)' '$(B)' $(ARGS)

clean-cache: $(READY) ## Remove cached stages by MAX_AGE_DAYS= and MAX_GB=, and leftovers; DRY=1 only says which
	@$(ENGINEWRIGHT) clean-cache $(if $(MAX_AGE_DAYS),--max-age-days $(MAX_AGE_DAYS)) $(if $(MAX_GB),--max-gb $(MAX_GB)) $(if $(DRY),--dry-run) $(ARGS)

export-hf: $(READY) ## Write the bundle's model as a Hugging Face folder: OUT=<new folder>
	@$(PYTHON) -m pipelines export-hf '$(BUNDLE)' '$(or $(OUT),$(HOME_DIR)/exported)' $(ARGS)

archive: $(READY) ## Write a bundle as one file, OUT=<file.tar.zst>
	@$(ENGINEWRIGHT) archive '$(BUNDLE)' $(if $(OUT),--out '$(OUT)')

sign: $(READY) ## Sign a bundle, its provenance and what its checks found: KEY=<EC private key.pem>
	@$(ENGINEWRIGHT) sign '$(BUNDLE)' --key '$(KEY)' $(ARGS)

deploy-files: $(READY) ## Write what deploys a bundle: container, Kubernetes, KServe, Ray Serve: OUT=<new folder>
	@$(ENGINEWRIGHT) deploy-files '$(BUNDLE)' '$(or $(OUT),$(HOME_DIR)/deploy)' $(ARGS)

publish: $(READY) ## Send a bundle to places: TO='<folder, file.tar.zst, oci:, triton:, hub:, mlflow:, s3://...> ...'
	@$(ENGINEWRIGHT) publish '$(BUNDLE)' $(TO) $(ARGS)

pull: $(READY) ## Bring a published bundle back: FROM=<place> OUT=<new folder>
	@$(ENGINEWRIGHT) pull '$(FROM)' '$(OUT)'

promote: $(READY) ## Make the registry's candidate, or VERSION=, its champion if it passes the gates: NAME=
	@$(ENGINEWRIGHT) promote $(if $(NAME),--name '$(NAME)') $(if $(VERSION),--version '$(VERSION)') $(ARGS)

rollback: $(READY) ## Make the previous champion the champion again: NAME=
	@$(ENGINEWRIGHT) rollback $(if $(NAME),--name '$(NAME)')

serve: $(READY) ## Answer OpenAI's API with the latest bundle, chat page at / (PORT=8000)
	@$(ENGINEWRIGHT) serve '$(BUNDLE)' $(if $(PORT),--port $(PORT)) $(ARGS)

ui: $(READY) ## Open MLflow on the local store (PORT=5000)
	@$(ENGINEWRIGHT) ui --port $(or $(PORT),5000) $(ARGS)

test: $(READY) ## Run the whole test suite
	@$(PYTHON) -m pytest -n auto --maxprocesses 4 $(ARGS)

test-gpu: $(READY) ## Run the tests that need an NVIDIA GPU, and write bench/results/<device>/test-gpu.json
	@$(PYTHON) -m tests.gpu_report $(ARGS)

bench-gpu: $(READY) ## Measure the CUDA engine beside its baselines on this GPU, into bench/results/<device>: ARGS='<row> ...'
	@$(PYTHON) -m bench.gpu $(ARGS)

lint: $(READY) ## Check style and types
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

clean: ## Remove the environment, cached stages and bundles; tracked runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -rf '$(HOME_DIR)/cache' '$(HOME_DIR)/bundles' '$(HOME_DIR)/failed'
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
