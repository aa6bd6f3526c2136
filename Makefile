# Everything a human or a CI needs. Each target sets up .venv itself; `make` alone prints the targets.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-gpu bench bench-kernels lint format clean

BIN := .venv/bin
CHECKS := '$(BIN)/ruff check' '$(BIN)/ruff format --check' '$(BIN)/mypy'
PYTEST := $(BIN)/python -m pytest
ARGS ?=
TWO_AT_ONCE := -n 2 --dist loadfile
ALL := '$(PYTEST) $(TWO_AT_ONCE) -m "not server"' '$(PYTEST) -m server'

# $(call run_all,'COMMAND' 'COMMAND' ...): runs them all, says how each went, and fails when one did.
define run_all
	@failed=0; summary=; \
	for command in $(1); do \
		printf '\n== %s\n' "$$command"; started=$$SECONDS; \
		if eval "$$command"; then verdict=ok; else verdict=FAILED; failed=1; fi; \
		summary+=$$(printf '%-6s  %4d s  %s' $$verdict $$((SECONDS - started)) "$$command")$$'\n'; \
	done; \
	printf '\n%s' "$$summary"; exit $$failed
endef

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv with everything in it (a GPU is detected); at once when there is nothing to do
	@bash deploy/setup.sh

demo: setup  ## a champion, three challengers, real traffic and verdicts, on this machine
	@$(BIN)/understudy demo $(ARGS)

test: setup  ## everything that must hold: ruff, format, mypy, and all of pytest (gpu tests skip themselves)
	$(call run_all,$(CHECKS) $(if $(ARGS),'$(PYTEST) $(ARGS)',$(ALL)))

test-fast: setup  ## pytest without real engines, GPU or chaos
	@$(PYTEST) $(TWO_AT_ONCE) -m "not slow and not gpu and not chaos" $(ARGS)

test-gpu: setup  ## only the tests that need a GPU
	@$(PYTEST) -m gpu $(ARGS)

bench: setup  ## run the benchmarks and write their results
	@$(BIN)/python benchmarks/run.py $(ARGS)

bench-kernels: setup  ## only those of the kernels, on a GPU where there is one
	@$(BIN)/python benchmarks/run.py score divergence $(ARGS)

lint: setup  ## ruff, format and mypy
	$(call run_all,$(CHECKS))

format: setup  ## put the code in order
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

clean:  ## remove what tools left behind; .venv and understudy-data stay
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	@find . -name .venv -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -type d -print0 | xargs -0 rm -rf
