# make book    the site, from nothing: installs into .venv, executes the notebooks, builds _build/html
# make test    the same set-up, then every check: style, types, the site without warnings, unit tests, notebooks, browser
#     make unit, make pages, make lint    its parts; ARGS="-k acting" goes to pytest
# make classroom  graded exercises: student and instructor editions and autograders, in _build/classroom
#     TORCH=cpu or TORCH=cuda: torch's build; without it the CUDA build only where there is an NVIDIA GPU
# make address URL=https://github.com/you/decision-metamamba    tells every file the repository's public address

PYTHON ?= python3
TORCH ?= auto
RUN := .venv/bin/python
HTML := _build/html/index.html
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with notebooks/sanitize.cfg

# All that a run writes stays inside this directory, and one thread per process is fastest on a shared machine.
export PYTHON TORCH
export MINARI_DATASETS_PATH := $(CURDIR)/.cache/minari
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export DMM_CACHE_DIR := $(CURDIR)/.cache/dmm
export IPYTHONDIR := $(CURDIR)/.cache/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/.cache/jupyter/config
export JUPYTER_DATA_DIR := $(CURDIR)/.cache/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CURDIR)/.cache/jupyter/runtime
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export OMP_NUM_THREADS := 1
ifeq ($(shell uname),Linux)
export MUJOCO_GL ?= $(shell PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q libEGL.so.1 && echo egl || echo osmesa)
endif

.PHONY: book test site stored lint unit pages notebooks classroom clean address FORCE

book: site
	@echo
	@echo "The book is at $(CURDIR)/$(HTML)"
	@echo "Open that file in a browser, or serve it: $(RUN) -m http.server --directory _build/html 8000"

# Notebooks are executed once, by nbval, which holds what they give against their stored outputs; the site that the
# browser opens is made of these. It is built while the package is tested, so that no core waits.
test: .venv/.test-stamp lint
	+$(MAKE) -j2 stored unit
	+$(MAKE) pages

site: .venv/.book-stamp
	@mkdir -p "$(MINARI_DATASETS_PATH)"
	.venv/bin/jupyter-book build . -W

stored: .venv/.test-stamp
	DMM_BOOK_EXECUTES=no .venv/bin/jupyter-book build . -W

lint: .venv/.test-stamp
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

unit: .venv/.test-stamp
	$(RUN) -m pytest tests -q --ignore tests/book --ignore tests/browser -n auto --dist loadfile $(ARGS)

pages: .venv/.test-stamp
	$(RUN) -m pytest tests/book tests/browser notebooks $(NBVAL) -n auto --dist loadfile -q $(ARGS)

notebooks: .venv/.test-stamp
	$(RUN) -m pytest notebooks $(NBVAL) -n auto --dist loadfile -q

classroom: .venv/.classroom-stamp
	$(RUN) book/_tools/classroom.py build

address:
	@test -n "$(URL)" || { echo "say which: make address URL=https://github.com/you/decision-metamamba"; exit 2; }
	$(PYTHON) book/_tools/address.py "$(URL)"

clean:
	rm -rf _build .cache .pytest_cache .mypy_cache .ruff_cache

# A build that is asked for is compared with the one that is there, even if nothing else has changed.
.venv/.book-stamp: requirements.txt pyproject.toml .ci/setup .ci/install_torch.py $(if $(filter-out auto,$(TORCH)),FORCE)
	bash .ci/setup book
	@touch $@

.venv/.classroom-stamp: .venv/.book-stamp .ci/pins-classroom.txt
	bash .ci/setup classroom
	@touch $@

.venv/.test-stamp: .venv/.book-stamp .ci/pins-classroom.txt .ci/pins-test.txt
	bash .ci/setup test
	@touch $@
