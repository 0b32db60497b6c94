# PYTHON=python3.12 names another interpreter for .venv; ARGS=... goes to the command.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long check figures clean

demo:
	@$(PYTHON) install.py web
	@$(BIN)/python -m bot demo $(ARGS)

# One worker more than cores, since many tests wait.
test:
	@$(PYTHON) install.py web eval dev
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-long:
	@$(PYTHON) install.py web eval dev
	@$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

check:
	@$(PYTHON) install.py web eval dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m bot db check

# The figures of the bundled model's card. SETS=... is the folder with the public evaluation sets that it names.
figures:
	@$(PYTHON) install.py eval
	@$(BIN)/python -m engine.bundled.score
	@$(BIN)/frontdesk model check bundled
	@$(BIN)/frontdesk eval $(SETS)/waimai_10k.csv --model bundled --balanced --limit 2000
	@$(BIN)/frontdesk eval $(SETS)/amazon_cells_labelled.txt --model bundled
	@$(BIN)/frontdesk eval $(SETS)/yelp_labelled.txt --model bundled

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
