# Two commands from a bare checkout: `make run` and `make test`. Everything else is for developers.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
UV := $(shell command -v uv 2>/dev/null)

.PHONY: run test lint check docs notebook matrix fuzz lock clean

run: $(BIN)/.ready
	$(BIN)/python jobs/train.py --config configs/quick.yaml $(ARGS)

# OMP_NUM_THREADS: two processes with two threads each on two cores spin against each other.
# Two processes: one for the tests that start a Ray, one after the other (tests/conftest.py), and one for the rest.
test: $(BIN)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

lint: $(BIN)/.ready
	$(BIN)/ruff format --check l2t_ray jobs tests benchmarks
	$(BIN)/ruff check l2t_ray jobs tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not ray and not slow and not gpu" $(ARGS)

$(BIN)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
ifdef UV
	$(UV) pip install --quiet --python $(BIN)/python -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
else
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
endif
	touch $@

# The documentation as a site, in site/; any warning fails.
docs: $(BIN)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The outputs in docs/notebook.ipynb: runs it from top to bottom, and keeps what comes of it.
notebook: $(BIN)/.ready
	L2T_NOTEBOOK=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration/test_notebook.py $(ARGS)

# The table in docs/reliability.md: causes every failure there is a test for.
matrix: $(BIN)/.ready
	L2T_MATRIX=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m failure $(ARGS)

# The table of inputs in docs/reliability.md: thousands of wrong ones, and how each ended.
fuzz: $(BIN)/.ready
	L2T_FUZZ=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz $(ARGS)

# The lock file names versions, and no index: it serves whichever one pip is set to.
lock:
	uv pip compile --quiet --universal --no-header --no-emit-index-url --no-annotate --python-version 3.11 \
		--extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv runs report site .pytest_cache .ruff_cache .hypothesis
