# make repro: from nothing to images, a Fréchet distance and figures. make test: lint, units, the graph through the real
# dvc. make stress: kills, faults, remotes, concurrency. make release-check: whether README, docs and pictures say what
# the committed run says. make doctor: whether what DVC stores is intact. make reproduce: whether the commit gives the
# same bits from nothing. make docs, make docs-serve: the documentation as a site, in build/site and as you write it. make
# lock, make pictures: see below. Every target but lock and pictures installs what it needs.
VENV ?= .venv
PYTHON ?= python3
ACTIVATE := . $(VENV)/bin/activate
READY := $(VENV)/.ready
# What `make test` gives to pytest: .ci/run has more.
TESTS ?= tests/pipeline tests/unit

.PHONY: setup repro test stress release-check lint doctor reproduce docs docs-serve pictures lock clean
.DEFAULT_GOAL := repro

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(ACTIVATE) && python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(READY)
	# The page needs it: fetched now, it is there without a network too. Where it cannot be had, a sentence says so.
	$(ACTIVATE) && python -m ddpm.export.browser_runtime || true
	# So do the curves of `dvc plots`.
	$(ACTIVATE) && python -m tools.offline_plots || true

setup: $(READY)

repro: $(READY)
	$(ACTIVATE) && dvc repro

lint: $(READY)
	$(ACTIVATE) && ruff check . && ruff format --check . && mypy

test: lint
	$(ACTIVATE) && pytest $(TESTS)

stress: $(READY)
	$(ACTIVATE) && pytest tests/stress

release-check: $(READY)
	$(ACTIVATE) && folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 1' HUP INT TERM \
		&& git clone --quiet . "$$folder" && cd "$$folder" && pytest --numprocesses=0 tests/release

doctor: $(READY)
	$(ACTIVATE) && python -m tools.doctor

reproduce: $(READY)
	$(ACTIVATE) && python -m tools.reproduce

docs: $(READY)
	$(ACTIVATE) && NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

docs-serve: $(READY)
	$(ACTIVATE) && NO_MKDOCS_2_WARNING=1 python -m mkdocs serve --livereload

# The README shows the outputs of the committed run: call this after committing a new one.
pictures:
	mkdir -p docs/images && cp data/figures/*.png data/figures/*.gif docs/images/
	cp data/report.html docs/results/default/
	$(ACTIVATE) && python -m tools.screenshots

# After a change of requirements.in: versions that still fit stay. Then the licences of what is now installed.
lock:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 1' HUP INT TERM && $(PYTHON) -m venv "$$folder" \
		&& "$$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9 \
		&& "$$folder/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --custom-compile-command "make lock" --output-file requirements.txt requirements.in
	$(MAKE) setup
	$(ACTIVATE) && { printf '# Licences of the installed packages\n\nWritten by `make lock` with pip-licenses.\n\n'; \
		pip-licenses --with-system --ignore-packages pip --format=markdown; } > docs/licences.md

clean:
	rm -rf $(VENV) .ckpt .pytest_cache .ruff_cache .mypy_cache dvc_plots build *.egg-info
