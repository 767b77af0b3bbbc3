# 'make help' lists the targets. GNU make, git and Python 3.11 or newer are all that must be there.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PYTEST_ARGS ?=

BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed

# DVC's stages call 'python': it must be the one of the environment.
export PATH := $(BIN):$(PATH)
# Nothing here phones home.
export BENTOML_DO_NOT_TRACK := True
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export RAY_USAGE_STATS_ENABLED := 0
# Four processes and a gigabyte that 'mlflow ui' does without.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.PHONY: install
install: $(STAMP) ## make the environment in .venv and install the lock (quick when up to date)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 (Debian: apt-get install python3 python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than 3.11: name a newer one, 'make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),install)'."; exit 1; }
	@test -x $(BIN)/python || { echo "Making the environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the versions of requirements.lock (about 3 GB, minutes on the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile -r requirements.lock \
	  | { grep -v '^Requirement already satisfied' || true; }
	@echo "Compiling what was installed, on all cores"
	@# Or every process would do it again where PYTHONDONTWRITEBYTECODE is set: 'import monai' takes nearly twice as
	@# long then, and so does 'bentoml serve'. Some packages carry files for other Pythons: those don't count.
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: $(STAMP) ## the whole chain, simulated: train, distil, evaluate, promote, package, serve; TASK=abdominal_ct for CT
	@$(BIN)/python -m tools.demo $(TASK)

.PHONY: real-person
real-person: $(STAMP) ## every model on a real scan that no training saw (needs the trained family); TASK=abdominal_ct for CT
	@$(BIN)/python -m dvc repro $(if $(TASK),tasks/$(TASK)/dvc.yaml:)unseen
	@task=$(or $(TASK),$$(sed -n 's/^task: *\([a-z_]*\).*/\1/p' params.yaml)); \
	  $(BIN)/python -m pipelines.unseen --show --task $$task --out reports/$$task

.PHONY: test
test: lint ## install, check the style and run all tests: 20 to 30 minutes on 2 cores
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: test-fast
test-fast: $(STAMP) ## the tests that take no server, no Ray run and no environment of their own
	@$(BIN)/python -m pytest -m "not slow and not nnunet" $(PYTEST_ARGS)

.PHONY: test-nnunet
test-nnunet: $(STAMP) ## compare with the real nnU-Net, installed (1 GB) in an environment of its own
	@$(BIN)/python -m pytest -s -m nnunet tests/interop

.PHONY: bench
bench: $(STAMP) ## time the runtime beside nnU-Net's predictor and MONAI's, on an idle machine: about 45 minutes
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

.PHONY: lint
lint: $(STAMP) ## style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: ui
ui: $(STAMP) ## the registry in the browser, on this machine only: http://127.0.0.1:5000
	@case "$${MLFLOW_TRACKING_URI:-}" in http*) echo "The registry is at $$MLFLOW_TRACKING_URI: open that."; exit 0;; esac; \
	  $(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" \
	  --default-artifact-root "file://$(CURDIR)/mlartifacts" --host 127.0.0.1 --port $(or $(PORT),5000) --workers 1

.PHONY: serve
serve: $(STAMP) ## the champion, or before there is one the released model, over HTTP: http://127.0.0.1:3000
	@$(if $(TASK),SEGDISTILL_TASK=$(TASK)) $(BIN)/bentoml serve --host 127.0.0.1 --port $(or $(PORT),3000)

.PHONY: readme
readme: $(STAMP) ## bring the tables of README.md and docs/ in step with the committed reports
	@$(BIN)/python -m tools.readme_table
	@$(BIN)/python -m tools.study_tables

.PHONY: lock
lock: $(STAMP) ## write requirements.lock from what is installed now
	@{ sed -n '/^#/p' requirements.lock; \
	   $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip \
	     | sed 's/^torch==\([0-9.]*\)+.*/torch==\1/'; } > requirements.lock.partial
	@mv requirements.lock.partial requirements.lock && touch $(STAMP)

.PHONY: clean
clean: ## remove what tools left behind; data, models, the registry and demo/ stay
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
