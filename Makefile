# make help   this list
# make demo   install, generate data, train DiffMM and a baseline, show recommendations
# make test   install with the development tools and run the default tests
# make fuzz   damage files at random, EXAMPLES=5000 times each
# make fast   the tests of the mathematics and of the layers, in half a minute
# make lint   the static checks but for types
# make types  mypy
# make docs   write what is generated: docs/configuration.md, docs/command-line.md
# make site   write the site of the docs into build/site; a warning is an error
# make locks  write uv.lock and requirements-cpu.txt anew
#
# Without a driver of NVIDIA's, torch is taken from its index for the CPU, 200 MB and not gigabytes of CUDA; if that cannot
# be reached, or with TORCH_INDEX= on the command line, from the package index.
# Python 3.12 comes first, the newest that DGL has a package for.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.12 python3.11 python3.10 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?= $(shell command -v nvidia-smi > /dev/null || test "$$(uname)" = Darwin || echo https://download.pytorch.org/whl/cpu)
TORCH := $(shell sed -n 's/^ *"\(torch[<>=][^"]*\)".*/\1/p' pyproject.toml)
RUN := $(VENV)/bin/python launch.py

.PHONY: help demo test fuzz fast lint types docs site locks check-python

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
	@$(VENV)/bin/python -m docs.hooks.command_line > docs/command-line.md.partial && mv docs/command-line.md.partial docs/command-line.md

site: $(VENV)/.installed-dev
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	@echo "build/site/index.html"

locks: $(VENV)/.installed-dev
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
	@$(VENV)/bin/uv lock --upgrade
	@.ci/lock-cpu $(VENV)/bin/uv > requirements-cpu.txt.partial && mv requirements-cpu.txt.partial requirements-cpu.txt

datasets/demo/manifest.json: | $(VENV)/.installed
	@$(RUN) prepare synthetic --out datasets/demo

$(VENV)/.installed: pyproject.toml | check-python
	@$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | check-python
	@$(call install,.[dev])
	@touch $@ $(VENV)/.installed

check-python:
	@for p in "$(PYTHON)" $(wildcard $(VENV)/bin/python); do \
		"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null || { \
		echo "error: '$$p' is no Python 3.10 or later; install one, or set PYTHON=/path/to/it (and remove $(VENV) if it was made by another)" >&2; exit 1; }; done

# What this makes anew it removes again if it fails; a folder that was there stays. Environments of uv have no pip.
define install
new=; test -e "$(VENV)" || new=yes; \
test -x "$(VENV)/bin/python" || "$(PYTHON)" -m venv "$(VENV)" || { test -z "$$new" || rm -rf "$(VENV)"; \
	echo "error: $(PYTHON) cannot make a virtual environment in $(VENV); install its venv module (Debian: apt install python3-venv), or choose another VENV=" >&2; exit 1; }; \
"$(VENV)/bin/python" -m pip --version > /dev/null 2>&1 || "$(VENV)/bin/python" -m ensurepip > /dev/null; \
echo "installing into $(VENV) (about two minutes the first time)"; \
test -z "$(TORCH_INDEX)" || "$(VENV)/bin/python" -m pip install --disable-pip-version-check --retries 1 --no-deps \
	--index-url $(TORCH_INDEX) "$(TORCH)" > "$(VENV)/torch.log" 2>&1 || echo "torch comes from the package index"; \
"$(VENV)/bin/python" -m pip install --disable-pip-version-check --editable "$(1)" > "$(VENV)/install.log" 2>&1 || { \
	echo "error: the packages could not be installed (is the package index reachable?); see $(VENV)/install.log" >&2; exit 1; }
endef
