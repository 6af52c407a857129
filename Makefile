# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OTHERS := $(VENV)/torchdistill
JOBS := 2
SEED := $(shell date +%s)
SMALL := --sampled 24 --student-epochs 4 --work runs/warmstart

.DEFAULT_GOAL := help
.PHONY: help install quickstart test coverage test-random test-faults check format bench-prices bench-engine bench-search bench-warmstart bench-proxy bench-paper bench-methods bench-fastnas bench-report clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the project with everything the tests need

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ama-search needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,dashboard]'
	@touch $@

# torchdistill pins old versions of what it needs: it gets a folder of its own, without them.
$(OTHERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps --target $@ torchdistill==1.1.5
	@touch $@

quickstart: $(STAMP) ## search, report, pick and retrain on the embedded digits
	$(BIN)/ama quickstart

test: $(STAMP) ## all tests, JOBS=2 at a time
	$(BIN)/python -m pytest tests -n $(JOBS)

coverage: $(STAMP) ## all tests with line coverage of the three packages; takes half as long again
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest tests -n $(JOBS) --cov --cov-report=term

test-random: $(STAMP) ## all tests, JOBS=2 at a time, in a random order; SEED=NUMBER repeats one
	$(BIN)/python -m pytest tests -n $(JOBS) --random-order --random-order-seed=$(SEED)

test-faults: $(STAMP) ## searches whose driver, nodes, database and disk are taken away; hours; AMA_FAULT_RUNS=30
	$(BIN)/python -m pytest tests -m faults -s

check: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-prices: $(STAMP) ## prices of 30 students against end-to-end measurements
	$(BIN)/python -m benchmarks.prices

bench-engine: $(OTHERS) ## epochs against the bare arithmetic, a plain loop, torchdistill; trials; ENGINE="--root IMAGES --teacher FILE"
	PYTHONPATH=$(OTHERS) $(BIN)/python -m benchmarks.engine $(ENGINE)

bench-search: $(OTHERS) ## search policies replayed on the recorded tables of distillation runs, without training
	$(BIN)/python -m benchmarks.search --ablations
	$(BIN)/python -m benchmarks.search --table benchmarks/tables/cifar.csv.gz

bench-warmstart: $(STAMP) ## epochs that a start from the library saves; WARM="--root IMAGES --teacher FILE"
	$(BIN)/python -m benchmarks.table_record cifar $(WARM) $(SMALL) --out runs/warmstart/table.csv.gz
	$(BIN)/python -m benchmarks.warmstart $(WARM) $(SMALL)

bench-proxy: $(STAMP) ## how well proxies known before training rank the tables' students
	$(BIN)/python -m benchmarks.proxy
	$(BIN)/python -m benchmarks.proxy --table benchmarks/tables/cifar.csv.gz
	$(BIN)/python -m benchmarks.surrogate --table benchmarks/tables/cifar.csv.gz

bench-paper: $(STAMP) ## the paper's table; PAPER="--root IMAGES --teacher FILE --train-limit 5000 --epochs 12"
	$(BIN)/python -m benchmarks.paper $(PAPER) --tune
	$(BIN)/python -m benchmarks.paper $(PAPER)

bench-methods: $(STAMP) ## the table of terms and methods; METHODS="--root IMAGES --teacher FILE --train-limit 5000 --epochs 12"
	$(BIN)/python -m benchmarks.paper $(METHODS) --table methods --sizes third --tune
	$(BIN)/python -m benchmarks.paper $(METHODS) --table methods --sizes third

bench-fastnas: $(STAMP) ## our search at the limits of ModelOpt's FastNAS example; FASTNAS="--root IMAGES --teacher FILE"
	$(BIN)/python -m benchmarks.fastnas $(FASTNAS)

bench-report: $(STAMP) ## time and memory of a report and a pick on 10,000 trials
	$(BIN)/python -m benchmarks.report

clean: ## remove .venv, caches and runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache runs *.egg-info
