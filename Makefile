# make demo and make test each work as the first command after git clone: they set up .venv once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SCRIPTS := train.sh train_FKD_10_r18.sh train_FKD_10_r50.sh train_FKD_10_r101.sh runs.sh demo/run.sh .ci/run

.PHONY: help setup demo test lint clean

help:
	@echo "make demo   train on real embedded data, end to end"
	@echo "make test   run the tests"
	@echo "make lint   ruff and shellcheck"
	@echo "make setup  only install into $(VENV)"
	@echo "make clean  remove $(VENV) and what the demo wrote"

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; set PYTHON=python3.11, say"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh demo/run.sh

test: $(READY)
	$(BIN)/python -m pytest -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck $(SCRIPTS)

clean:
	rm -rf $(VENV) demo/work .pytest_cache .ruff_cache .hypothesis
