# Everything is installed in .venv by the first target that needs it (a few minutes, several GB).
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := methods datasets backbones benchmarks

.PHONY: test test-slow demo docs lint types clean

# The kill tests fork, so they run first, in processes in which nothing else has run.
test: .venv/dev.stamp
	$(BIN)/python -m pytest -q -n 2 tests/training
	$(BIN)/python -m pytest -q -n 2 --ignore=tests/training

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -q -n 2 -m "slow and not gpu"

demo: .venv/run.stamp
	$(BIN)/segbench demo

# The site is written to build/site.
docs: .venv/dev.stamp
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[docs]'
	$(BIN)/mkdocs build --quiet

lint: .venv/dev.stamp types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# mypy cannot see the mapping of the plug-in folders, so it gets a tree of links that looks like the installed package.
types: .venv/dev.stamp
	@rm -rf build/types && mkdir -p build/types/segbench
	@ln -s $(CURDIR)/segbench/* $(addprefix $(CURDIR)/,$(PLUGINS)) build/types/segbench/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p segbench

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/run.stamp: pyproject.toml
	@echo "installing segbench into .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e .
	@touch $@

.venv/dev.stamp: pyproject.toml
	@echo "installing segbench and its test tools into .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch .venv/run.stamp $@
