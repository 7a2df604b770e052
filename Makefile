# Every target sets up what it needs: a virtual environment with the pinned packages, made once and reused.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.lefcourse-ready
CHAPTER ?= elr
JOBS ?= 2
# What concerns one chapter, if one is named.
ifneq ($(filter command environment,$(firstword $(origin CHAPTER))),)
ONE := --chapter $(CHAPTER) $(wildcard notebooks/*/$(CHAPTER).ipynb tests/notebooks/test_$(subst -,_,$(CHAPTER)).py) tests/notebooks/test_chapters.py
endif

.PHONY: help run test lab book bench lint format lock gpu-test

help:            ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 14

$(READY): requirements.txt pyproject.toml tools/install.py
	@$(PYTHON) tools/install.py $(VENV)

run: $(READY)    ## execute a chapter (CHAPTER=elr), draw its figures, check its claim
	$(BIN)/lefcourse run $(CHAPTER)

test: $(READY) lint  ## lint, unit tests, every notebook at the smoke budget (CHAPTER=uda: one chapter)
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -n $(JOBS) --dist loadgroup $(ONE)

lint: $(READY)   ## ruff: lint and format, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## let ruff mend what it can; strip outputs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' -exec $(BIN)/nbstripout {} +

gpu-test: $(READY) ## every notebook and every gpu test on CUDA; fails without a CUDA device
	LEFCOURSE_DEVICE=cuda $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -m gpu

lab: $(READY)    ## JupyterLab with the course open at its start page
	$(BIN)/lefcourse lab

book: $(READY)   ## execute what changed and build the site
	$(BIN)/lefcourse book

bench: $(READY)  ## print what the course costs in time and memory (CHAPTER=uda: one chapter)
	@$(BIN)/python tests/benchmarks/bench_course.py $(if $(ONE),$(CHAPTER))
ifeq ($(ONE),)
	@for name in shapes sweep; do $(BIN)/python tests/benchmarks/bench_$$name.py || exit 1; done
	LEFCOURSE_TIMED=1 $(BIN)/python -m pytest -q tests/browser/test_site.py -k within_a_second
endif

lock:            ## write requirements.txt anew from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --all-extras --no-annotate --no-header pyproject.toml -o requirements.txt
