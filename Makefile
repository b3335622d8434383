# make demo | test | env | lint | docs | wheel-smoke | bench. Each makes the environment first if it is missing or out of date.
# make app | test-app   the composer in the browser, on the newest run; its tests in a real browser
# make test-slow    the tests that take longest
# make test-gpu     what needs a CUDA device
# make test-slurm   tests on a SLURM node of its own; installs Debian's slurm-wlm and munge, as root
# make stats | clean
#
#   ACCELERATOR=cpu|gpu   which faiss to install (default cpu)
#   TORCH_INDEX=ADDRESS   an index to take torch from, for instance the one of its CPU builds
#   PYTHON=...            the interpreter that makes the environment (3.11, 3.12 or 3.13)
#   APP=1                 env with what the app needs
#   ARGS=...              more arguments: overrides for demo, options of pytest for test
#   WORKERS=N             processes that tests run in (default 2; 0: this one)

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
ACCELERATOR ?= cpu
TORCH_INDEX ?=
ARGS ?=
# Tests run in so many processes, a file in one of them; each has one thread and needs about 1 GB. Files start in the order
# of their names: those with the most tests first would leave the few that start processes of their own to the end.
WORKERS ?= 2
STAMP := $(VENV)/.stamp-$(ACCELERATOR)
# Named like this in the constraints; anchored, or "torch" would also find "torchmetrics".
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)
# 3.11 first, where the pins were tested. A found name is not yet a working interpreter (version managers leave dead shims): ask each for its version.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)

# Extras that one target alone needs: installed when it is asked for.
EXTRA = $(PY) tools/check_env.py $(ACCELERATOR) $(1) || \
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(1)]"

.PHONY: help env demo app test test-slow test-gpu test-app test-slurm lint format docs wheel-smoke stats bench clean

help:
	@sed -n '1,12p' Makefile | sed 's/^# \{0,1\}//'

env: $(STAMP)
	@if [ -n "$(APP)" ]; then $(call EXTRA,app); fi

# The environment stands when the project imports at its pinned versions; then nothing is installed, and the stamp says so.
$(STAMP): pyproject.toml constraints.txt
	@if [ -x $(PY) ] && $(PY) tools/check_env.py $(ACCELERATOR); then \
		echo "The environment in $(VENV) is complete."; \
	else \
		set -e; \
		if ! [ -x $(PY) ]; then \
			if [ -z "$(PYTHON)" ]; then \
				echo "No Python 3.11, 3.12 or 3.13 with venv was found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; fi; \
			echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); fi; \
		$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt \
			$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"; \
		$(PY) -m pip uninstall --quiet --yes $(filter-out faiss-$(ACCELERATOR),faiss-cpu faiss-gpu) 2>/dev/null; \
		$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(ACCELERATOR),dev]"; \
		$(PY) tools/check_env.py $(ACCELERATOR); \
	fi
	@rm -f $(VENV)/.stamp-*; touch $@

demo: env
	$(PY) -m partcraft_lit train experiment=demo $(ARGS)

# The newest run; without any, the demo is trained first.
app: env
	@$(call EXTRA,app)
	@compgen -G "logs/train/runs/*/finished.json" >/dev/null || $(MAKE) demo
	$(PY) -m partcraft_lit app $(ARGS)

OTHER_TIERS := not gpu and not net and not app and not slurm
PYTEST := HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -q
IN_PROCESSES = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST) -m "not slow and $(OTHER_TIERS)" $(IN_PROCESSES) $(ARGS)

# Whole tables, sweeps and commands in several processes: minutes more.
test-slow: env
	$(PYTEST) -m "slow and $(OTHER_TIERS)" $(IN_PROCESSES) $(ARGS)

# On a CUDA device: what only such a one can show. PARTCRAFT_TEST_DEVICE=gpu takes the runs of any other test there too.
test-gpu: env
	$(PYTEST) -m gpu $(ARGS)

# A browser is installed where apt is there and may; without one, these tests are skipped.
test-app: env
	@$(call EXTRA,app)
	@$(call EXTRA,app-test)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || [ -n "$$CHROMIUM" ] || \
		{ command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y chromium >/dev/null; } || \
		echo "There is no Chromium, and it cannot be installed here: tests in a browser are skipped."
	$(PYTEST) -m app tests/app $(ARGS)

# Not part of "test": it needs root, and daemons that it starts and stops. Ends with an error where SLURM is not to be had.
test-slurm: env
	@$(PY) tools/slurm_node.py install
	$(PYTEST) -m slurm tests/slurm $(ARGS)

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Offline, into site/. A broken link is an error.
docs: env
	@$(call EXTRA,docs)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "Open site/index.html."

wheel-smoke: env
	$(PY) tools/wheel_smoke.py

stats:
	@python3 tools/stats.py

bench: env
	@set -e; for bench in benchmarks/*.py; do echo "== $$bench"; $(PY) $$bench $(ARGS); done

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
