# Everything a person or CI runs. `make demo` and `make test` set up what they need; nothing else comes before them.
.DEFAULT_GOAL := help
.PHONY: help setup model demo test lint unit recipes chaos fuzz bench lock audit sbom doctor clean

BIN := .venv/bin
ARGS ?=

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## virtual environment, locked packages, model (a second time: under a second)
	@bash scripts/bootstrap.sh

model: setup ## make or check the model of the quickstart (in ~/.rondo)
	@$(BIN)/python -m pipelines.prepare_model

demo: setup ## online DPO of SmolLM2-135M on this machine (ARGS="objective.beta=0.2" overrides any field)
	@$(BIN)/rondo run configs/quickstart.yaml run.name=demo-$$(date +%Y%m%d-%H%M%S) $(ARGS)

test: setup lint ## lint, types, unit and integration tests, the annotation page in a real browser
	@bash scripts/browser.sh
	@bash scripts/promtool.sh
	@$(BIN)/python -m pytest -n 2 --dist worksteal tests/unit tests/fuzz
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/integration tests/browser

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

unit: setup ## unit tests only (no Ray)
	@$(BIN)/python -m pytest -n 2 --dist worksteal tests/unit

recipes: setup ## whole runs of what fewer people use: opponents, panels, reward models, a job with PostgreSQL and Prometheus
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/recipes

chaos: setup ## long tests: kills, resumed and restored runs, late people, every trainer state on other ranks
	@$(BIN)/python -m pytest tests/chaos

fuzz: setup ## 100,000 hostile files and messages (RONDO_FUZZ=N, RONDO_FUZZ_SEED=N; half an hour)
	@RONDO_FUZZ=$${RONDO_FUZZ:-100000} $(BIN)/python -m pytest tests/fuzz

bench: ## what can be measured, one script a line
	@for f in benchmarks/*.py; do \
		[ ! -f "$$f" ] || printf '%-32s %s\n' "$$f" "$$(sed -n '1s/"""//gp' "$$f")"; \
	done

lock: ## resolve the locked versions anew from pyproject.toml
	@bash scripts/lock.sh

audit: setup ## known vulnerabilities of the locked packages (needs the internet)
	@bash scripts/supply_chain.sh audit

sbom: setup ## bills of materials (CycloneDX) of the locked packages, in build/
	@bash scripts/supply_chain.sh sbom

doctor: setup ## what of this machine fits the quickstart
	@$(BIN)/rondo doctor configs/quickstart.yaml

clean: ## remove the virtual environment and caches (models and runs in ~/.rondo stay)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info
