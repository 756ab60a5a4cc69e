# Everything a fresh machine needs: `make test` and `make demo` build their own environment in .venv.
# Settings: PYTHON (an interpreter >= 3.11), WORKERS (test processes), STUDY (what `make demo` runs).

PYTHON ?= python3
WORKERS ?= 2
STUDY ?= studies/sotu_lm.toml

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two test processes with one thread each: more threads on small matrices only get in each other's way.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install lint docs test test-slow chaos demo clean

help: ## show this list
	@echo "Usage: make TARGET [PYTHON=python3.12] [WORKERS=2] [STUDY=studies/sotu_lm.toml]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

# The stamp is written last, so an install that was interrupted is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "transfer_bo needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo 'not found');" \
	       "install one and name it, e.g. make test PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' can't create virtual environments; install its venv module" \
	       "(Debian, Ubuntu: apt-get install python3-venv) and run make again"; exit 1; }
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' # first with --group
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[text]' --group dev
	@touch $(STAMP)

install: $(STAMP) ## create .venv with the package and its tools, at the pinned versions

lint: $(STAMP) ## style, types, import directions, vocabulary
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_blank_lines.py transfer_bo
	$(BIN)/python scripts/check_vocabulary.py README.md CONTRIBUTING.md CHANGELOG.md docs transfer_bo tests benchmarks examples studies

docs: $(STAMP) ## build the documentation into site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint docs ## lint, documentation, then the test suite (under 10 minutes on 2 cores)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(STAMP) ## the longer checks that `make test` leaves out
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m slow

chaos: $(STAMP) ## kill workers and restart the database while studies run, and count what is lost (10 minutes)
	$(TEST_ENV) $(BIN)/python tests/runners/chaos.py --storage postgresql --trials 500
	$(TEST_ENV) $(BIN)/python tests/runners/chaos.py --storage sqlite --trials 150
	$(TEST_ENV) $(BIN)/python tests/runners/chaos.py --storage grpc --trials 150
	$(TEST_ENV) $(BIN)/python tests/runners/chaos.py --storage journal --trials 150

demo: $(STAMP) ## tune on proxies, project to the target, verify there, write a report (12 minutes on 2 cores)
	$(BIN)/transfer-bo run $(STUDY)
	$(BIN)/transfer-bo verify $(STUDY)
	$(BIN)/transfer-bo report $(STUDY)

clean: ## remove the environment and the caches; the studies in runs/ stay
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
