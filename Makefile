# `make` alone lists the targets. Each one sets up .venv first where needed: scripts/setup.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Spark's workers must run the Python of .venv, and another Spark's settings must not leak in.
export PYSPARK_PYTHON := $(CURDIR)/.venv/bin/python
unexport PYSPARK_DRIVER_PYTHON SPARK_HOME PYTHONPATH PYTHONHOME

export DATA
ARGS ?=# more arguments for the command, as in: make test ARGS="-k ease"
BIN := .venv/bin
WITH_JAVA = JAVA_HOME="$$(cat .venv/java_home)"

.PHONY: help setup setup-python demo xmarket doctor test check peers bench bench-full docs wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: ## .venv with the pinned packages, and a Java
	@scripts/setup.sh

setup-python:
	@scripts/setup.sh --without-java

demo: setup ## the whole pipeline on a generated five-market shop; under 3 minutes
	@$(WITH_JAVA) $(BIN)/m3rec demo $(ARGS)

xmarket: ## the whole pipeline on the five real markets: make xmarket DATA=<folder of s1 .. t2>
	@if [[ -z "$$DATA" ]]; then \
		echo "say where the XMarket files are: make xmarket DATA=<folder that holds s1, s2, s3, t1, t2>" >&2; \
		echo "to get them: make setup && .venv/bin/m3rec data xmarket --to <folder>" >&2; exit 2; fi
	@scripts/setup.sh
	@$(WITH_JAVA) $(BIN)/m3rec run --config conf/xmarket.yaml --workspace build/xmarket "source.path=$$DATA" $(ARGS)

doctor: setup-python ## checks this machine: versions, Java, disk, known traps
	@$(BIN)/m3rec doctor $(ARGS)

test: ## all tests
	@scripts/setup.sh --with-browser
	@$(WITH_JAVA) $(BIN)/python -m pytest $(ARGS)

check: setup-python ## lint, types and the tests without Spark; about a minute
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -m "not spark and not slow" $(ARGS)

peers: ## build/peers: the libraries that benchmarks/ measures against
	@[[ -x build/peers/bin/python ]] || $${PYTHON:-python3.11} -m venv build/peers
	@build/peers/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements-peers.txt
	@build/peers/bin/python -m pip install -q --disable-pip-version-check --upgrade --target build/peers/numpy2 \
		-r benchmarks/requirements-peers-numpy2.txt

bench: setup peers ## stages of pretraining against their peers, quick sizes
	@$(WITH_JAVA) $(BIN)/python benchmarks/run.py $(ARGS)

bench-full: setup peers ## the same with the large sizes, and the scaling laws
	@$(WITH_JAVA) $(BIN)/python benchmarks/run.py --full $(ARGS)

docs: setup-python ## the documents as a site: build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

wheel: setup-python ## dist/m3rec_spark-*.whl
	@rm -rf build/lib build/bdist.* dist
	@$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .
	@rm -rf build/lib build/bdist.*
	@ls dist/*.whl

clean: ## removes caches and wheels; keeps .venv and the workspaces under build/
	@rm -rf build/lib build/bdist.* dist .pytest_cache .mypy_cache .ruff_cache .hypothesis spark-warehouse
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
