# make repro: from nothing to digits, a Fréchet distance and pictures. make test: the checks. Both set themselves up.
VENV ?= .venv
PYTHON ?= python3
ACTIVATE := . $(VENV)/bin/activate
READY := $(VENV)/.ready

.PHONY: setup repro test lint pictures clean
.DEFAULT_GOAL := repro

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(ACTIVATE) && python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(READY)

setup: $(READY)

repro: $(READY)
	$(ACTIVATE) && dvc repro

lint: $(READY)
	$(ACTIVATE) && ruff check . && ruff format --check . && mypy

test: lint
	$(ACTIVATE) && pytest

# The README shows the outputs of the committed run: call this after committing a new one.
pictures:
	mkdir -p docs/images && cp data/figures/*.png data/figures/*.gif docs/images/

clean:
	rm -rf $(VENV) .ckpt .pytest_cache .ruff_cache .mypy_cache dvc_plots
