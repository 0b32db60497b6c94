# PYTHON=python3.12 names another interpreter for .venv; ARGS=... goes to the command.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long check clean

demo:
	@$(PYTHON) install.py web
	@$(BIN)/python -m bot demo $(ARGS)

test:
	@$(PYTHON) install.py web dev
	@$(BIN)/python -m pytest -n 2 $(ARGS)

test-long:
	@$(PYTHON) install.py web dev
	@$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

check:
	@$(PYTHON) install.py web dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m bot db check

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
