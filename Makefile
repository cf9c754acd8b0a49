# Verbs for people and for CI. Each one builds what it needs; the second run skips what is done.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# The generated Azure bindings take seconds to compile; without a bytecode cache every synth would pay for it again.
unexport PYTHONDONTWRITEBYTECODE
# Nobody is told what is synthesized here.
export CDK_DISABLE_CLI_TELEMETRY := true
export CHECKPOINT_DISABLE := 1

.DEFAULT_GOAL := help

help: ## Lists the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: setup ## The whole journey on this machine; MODEL=<name>, DATA=<folder> or a word of the model's, KEEP=1 leaves both doors open
	@$(BIN)/ferry --env local demo $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") $(if $(KEEP),--keep)

test: setup .venv-checkov/.ready ## Format, lint, types and every test
	@scripts/test

test-slow: setup ## The longest tests: whole journeys, several processes, kills in the middle of a training
	@$(BIN)/python -m pytest -m slow

test-cdktn: setup .venv/.cdktn-ready ## The Azure stack's tests with the second kit, cdktn and azurerm 5
	@FERRY_CDKTF_KIT=cdktn $(BIN)/python -m pytest tests/test_azure_kit.py tests/test_infra_azure*.py

synth: setup ## Both clouds' templates for FERRY_ENV, written to cdk.out and cdktf.out
	@cdk synth --quiet && cdktf synth

bench: setup ## Everything that is measured, peers included (after make demo); QUICK=1: a try; DATA=<MNIST folder>: training too
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(DATA),--data "$(DATA)") $(if $(PEERS),--peers "$(PEERS)") $(if $(INT8),--int8 "$(INT8)") $(RELEASE)

soak: setup ## Ten minutes of good and bad requests, abuse and a killed worker (after make demo); MINUTES=<number>
	@$(BIN)/python -m bench.soak $(if $(MINUTES),--minutes "$(MINUTES)") $(RELEASE)

snapshots: setup ## Rewrites the expected templates; read the diff like code
	@$(BIN)/python -m pytest -q --snapshot-update tests/test_infra_snapshots.py tests/test_infra_azure.py \
		tests/test_infra_hosting_variants.py tests/test_infra_gateway.py

setup: .venv/.ready node_modules/.ready model_code/inference/libarrays.so ## Builds .venv and node_modules

lock: ## Resolves every Python version afresh into constraints.txt
	@scripts/lock

clean: ## Removes everything that was generated, the set-up included
	@rm -rf .venv .venv-checkov node_modules build cdk.out cdktf.out model_code/inference/libarrays.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml constraints.txt scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup python

model_code/inference/libarrays.so: model_code/native/arrays.c model_code/native/build.py | .venv/.ready
	@$(BIN)/python -m model_code.native.build $@

.venv/.cdktn-ready: .venv/.ready
	@scripts/setup cdktn

node_modules/.ready: package.json package-lock.json .npmrc scripts/setup .venv/.ready
	@scripts/setup node

.venv-checkov/.ready: tests/checkov/requirements.txt scripts/setup
	@PYTHON="$(PYTHON)" scripts/setup checkov

.PHONY: help demo test test-slow test-cdktn synth bench soak snapshots setup lock clean
