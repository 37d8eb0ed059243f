# Everything works from a clean clone with Python 3.11+, pip and make. Set PYTHON to choose another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo

.PHONY: demo test test-system test-full second-look check format sync bench chaos fuzz crash lock clean help

help: ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Debian's Python comes without ensurepip unless python3-venv is installed: then pip itself puts pip there.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --quiet --disable-pip-version-check --python $(VENV)/bin/python install pip; }

$(DEMO_STAMP): pyproject.toml requirements/run.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(STAMP): pyproject.toml requirements/dev.txt $(DEMO_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

demo: $(DEMO_STAMP) ## Set up and run the demonstration.
	@$(BIN)/scrubjay demo

# Most tests wait for servers: three workers take less time than two, also on two cores.
test: $(STAMP) ## Set up and run the tests (no system packages needed).
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not system and not full" $(ARGS)

test-system: $(STAMP) ## Tests that need Debian packages; installs them.
	@PYTHON="$(BIN)/python" sh tools/system_tests.sh $(ARGS)

test-full: $(STAMP) ## All servers, long forms.
	@PYTHON="$(BIN)/python" HYPOTHESIS_PROFILE=long sh tools/system_tests.sh --all $(ARGS)

second-look: $(STAMP) ## Run once more, alone, the few tests that have just failed.
	@$(BIN)/python tools/second_look.py

check: $(STAMP) ## Lint, format, strict types, import contract, generated files.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_sync.py --check

format: $(STAMP) ## Format, and mend what can be mended.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sync: $(STAMP) ## Write the synchronous twin anew.
	$(BIN)/python tools/generate_sync.py

bench: $(STAMP) ## Run all benchmarks.
	$(BIN)/python -m benchmarks $(ARGS)

chaos: $(STAMP) ## Kill processes and cut networks for a minute, and judge every read.
	$(BIN)/scrubjay chaos $(ARGS)

# SESSIONS=, SEED= and START= say which; a run that was stopped says how to go on.
fuzz: $(STAMP) ## Lay out windows of 100,000 random sessions, and judge every one.
	$(BIN)/python -m tests.fuzz --sessions $(or $(SESSIONS),100000) --seed $(or $(SEED),0) --start $(or $(START),0) $(ARGS)

# SEED=, KILLS= and APPENDS= say which; ARGS="--durability memory" finds loss, and how it is reported.
crash: $(STAMP) ## Kill processes and the journal's server, lose what was not synced, and judge every message.
	$(BIN)/python -m tests.crash --kills $(or $(KILLS),200) --appends $(or $(APPENDS),100000) --seed $(or $(SEED),0) $(ARGS)

lock: ## Write the locked versions anew (needs uv).
	uv pip compile --quiet --universal --python-version 3.11 --extra postgres --extra speed pyproject.toml -o requirements/run.txt
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev pyproject.toml -c requirements/run.txt -o requirements/dev.txt

clean: ## Remove what was made.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build .scrubjay
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
