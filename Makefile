# make demo and make test each work as the first command after git clone: they set up .venv once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LAUNCHERS := train.sh scripts/launcher.sh scripts/whole_numbers.sh train_plain.sh train_live.sh train_FKD_10_r18.sh train_FKD_10_r50.sh train_FKD_10_r101.sh $(wildcard scripts/recipes/*.sh) \
	benchmarks/gpu.sh demo/run.sh demo/prepare.sh demo/evidence.sh .ci/run

OLDEST := .venv-oldest
PARALLEL := -n logical --maxprocesses 4 --dist worksteal
COVERAGE := --cov=utils --cov=patches --cov-report=term:skip-covered --cov-fail-under=90

.PHONY: help setup demo evidence test coverage test-oldest fuzz flags lint docs clean

help:
	@echo "make demo   train on real embedded data, end to end"
	@echo "make evidence   on the same data: is it the images or the labels? 54 small runs, one report"
	@echo "make test   run the tests"
	@echo "make coverage   run the tests, and fail if they reach less than 90 % of the code (a third slower)"
	@echo "make test-oldest   run them on the oldest supported PyTorch, torchvision and numpy"
	@echo "make fuzz   20,000 damaged files: each is read right or refused in one sentence"
	@echo "make flags  renew docs/flags.md, the page of all flags"
	@echo "make lint   ruff, mypy and shellcheck"
	@echo "make docs   the pages of docs/ as a site, in build/site: no network, dead links and anchors are errors"
	@echo "make setup  only install into $(VENV): the project itself, in place, and what it needs"
	@echo "make clean  remove $(VENV) and what the demo wrote"

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; set PYTHON=python3.11, say"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(READY)
	PYTHON="$(abspath $(BIN))/python" sh demo/run.sh

evidence: $(READY)
	PYTHON="$(abspath $(BIN))/python" sh demo/evidence.sh

test: $(READY)
	$(BIN)/python -m pytest -q $(PARALLEL)

coverage: $(READY)
	$(BIN)/python -m pytest -q $(PARALLEL) $(COVERAGE)

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -q $(PARALLEL)

$(OLDEST)/.ready: requirements.txt requirements-oldest.txt pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-oldest.txt
	@touch $@

fuzz: $(READY)
	$(BIN)/python tests/fuzz.py 20000

flags: $(READY)
	$(BIN)/python scripts/flags_page.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x $(LAUNCHERS)

# Like all other targets, docs takes VENV=FOLDER for another environment and PYTHON=python3.11 for the Python that makes
# it. NO_MKDOCS_2_WARNING hides a notice of the theme about later versions, which pyproject.toml excludes.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "open build/site/index.html in a browser"

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info demo/work demo/work-evidence .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
