# make help   this list
# make demo   install, generate data, train DiffMM and a baseline, show recommendations
# make test   install with the development tools and run the default tests
# make fuzz   damage files at random, EXAMPLES=5000 times each
# make fast   the tests of the mathematics and of the layers, in half a minute
# make lint   the static checks but for types
# make types  mypy
# make docs   write what is generated: docs/configuration.md
#
# Python 3.11 comes first: DGL, which partitions by METIS and brings a second kernel, has no package beyond it.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.10 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python launch.py

.PHONY: help demo test fuzz fast lint types docs check-python

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.installed datasets/demo/manifest.json
	@$(RUN) train --config configs/demo.yaml model.name=popularity run.path=runs/demo/popularity > /dev/null
	@$(RUN) train --config configs/demo.yaml
	@$(RUN) export runs/demo/diffmm --out bundles/demo --force
	@echo; echo "Test figures, popularity against DiffMM:"
	@$(RUN) compare runs/demo/popularity runs/demo/diffmm
	@echo "The five best items for three users:"
	@$(RUN) recommend bundles/demo --users user_0,user_1,user_2 --k 5
	@echo "Run folder:  runs/demo/diffmm"
	@echo "TensorBoard: $(VENV)/bin/tensorboard --logdir runs/demo"

test: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m pytest --numprocesses 2

fuzz: $(VENV)/.installed-dev
	@DIFFMM_FUZZ=$(or $(EXAMPLES),5000) $(VENV)/bin/python -m pytest -q --timeout 7200 tests/unit/test_fuzz.py

fast: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m pytest -q --numprocesses 2 tests/architecture tests/numerics tests/unit/config tests/unit/diffusion \
		tests/unit/graph tests/unit/losses tests/unit/parallel

lint: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-cache
	@$(VENV)/bin/codespell diffmm_dist tests docs configs ./*.md launch.py Makefile .ci

types: $(VENV)/.installed-dev
	@$(VENV)/bin/mypy

docs: $(VENV)/.installed-dev
	@$(RUN) config reference > docs/configuration.md.partial && mv docs/configuration.md.partial docs/configuration.md

datasets/demo/manifest.json: | $(VENV)/.installed
	@$(RUN) prepare synthetic --out datasets/demo

$(VENV)/.installed: pyproject.toml | check-python
	@$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | check-python
	@$(call install,.[dev])
	@touch $@ $(VENV)/.installed

check-python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.10 to 3.13 is needed and was not found; install one or set PYTHON=/path/to/it" >&2; exit 1; }

define install
test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "error: $(PYTHON) cannot make a virtual environment; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }; \
echo "installing into $(VENV) (about two minutes the first time)"; \
$(VENV)/bin/python -m pip install --disable-pip-version-check --editable "$(1)" > $(VENV)/install.log 2>&1 || { \
	echo "error: the packages could not be installed (is the package index reachable?); see $(VENV)/install.log" >&2; exit 1; }
endef
