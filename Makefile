# make demo: the main job, on this machine, in a few minutes. make test: everything, needs nothing prepared.
# make test-quick: what needs no server and runs no study.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := runs/demo
# More processes for the whole than CI has cores: most of those tests wait for servers, leases and processes.
BY_SCOPE := --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-quick lint format clean bench-jobs bench-pairs bench-step bench-loader bench-collect faults docs migration

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m orchestrator.demo $(DEMO)

test: $(STAMP)
	tests/prepare
	$(BIN)/python -m pytest --numprocesses 4 $(BY_SCOPE) --durations 30

test-quick: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 $(BY_SCOPE) --quick

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-jobs bench-pairs bench-step bench-loader bench-collect: bench-%: $(STAMP)
	$(BIN)/python -m benchmarks.bench_$*

# SECONDS= bounds it, SEED= and ROUND= repeat one round, KINDS= and BACKEND= choose; tests/faults/__main__.py says more.
faults: $(STAMP)
	tests/prepare
	$(BIN)/python -m tests.faults $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ROUND),--round $(ROUND)) $(if $(KINDS),--kinds "$(KINDS)") $(if $(BACKEND),--backend $(BACKEND))

docs: $(STAMP)
	$(BIN)/python -m docs.generate.schema_page
	$(BIN)/python -m docs.generate.study_page
	$(BIN)/python -m docs.generate.concepts_page
	$(BIN)/python -m docs.generate.commands_page
	$(BIN)/python -m docs.generate.paper_page
	$(BIN)/python -m docs.generate.performance_page

migration: $(STAMP)
	$(BIN)/python sql/write_migration.py $(NAME)
	$(BIN)/ruff format --quiet sql/migrations/versions

clean:
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache
