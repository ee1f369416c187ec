# Two commands do it: `make demo` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help setup programs demo test lint crds bench gateway catalogue kills breaks up down status clean
SHELL := /bin/bash
export PYTHONPATH := e2e
PYTHON := .venv/bin/python
STEP := e2e/step

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ready: pyproject.toml e2e/setup
	@$(STEP) "set up the environment" e2e/setup

setup: ## Install what is missing: uv, the environment in .venv, Debian packages (as root)
	@$(STEP) "set up the environment" e2e/setup

programs: .venv/.ready ## Get etcd, kube-apiserver and kubectl: found, cached, or built once (6 to 9 minutes)
	@$(STEP) "etcd, kube-apiserver and kubectl" $(PYTHON) -m servers programs

demo: programs ## The main job on a real image, told step by step; URL=…, STORES=s3,rbd,…, KEEP=1 leaves all running
	@$(STEP) "demo" $(PYTHON) e2e/demo.py $(if $(KEEP),--keep) --stores "$(STORES)" $(if $(URL),"$(URL)")

test: programs ## All tests, JOBS=2 at once; GLIMPSE_REQUIRE=all makes a skip a failure, ARGS=… goes to pytest
	@$(STEP) "servers of the tests" $(PYTHON) -m servers build
	@$(STEP) "tests" .venv/bin/pytest --numprocesses $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.ready ## Style, types, import contracts, generated CRDs, examples in the docs
	@$(STEP) "ruff check" .venv/bin/ruff check .
	@$(STEP) "ruff format" .venv/bin/ruff format --check .
	@$(STEP) "mypy --strict" .venv/bin/mypy operator/glimpse e2e tests bench docs/howto/sqlite-store/glimpse_sqlite.py
	@$(STEP) "import contracts" .venv/bin/lint-imports
	@$(STEP) "CRDs are up to date" $(PYTHON) e2e/crds.py --check
	@$(STEP) "examples in the docs" .venv/bin/pytest -q tests/test_docs.py

crds: .venv/.ready ## Write crds/ anew from the models
	@$(STEP) "CRDs" $(PYTHON) e2e/crds.py

bench: programs ## Measure against curl, aria2c, nginx and others; STORES=all or s3,rbd,…: the stores; writes the table
	@$(STEP) "bench" $(PYTHON) $(if $(filter gateway,$(MAKECMDGOALS)),bench/gateway.py,$(if $(filter catalogue,$(MAKECMDGOALS)),bench/catalogue.py,$(if $(STORES),bench/stores.py $(STORES),bench/bench.py))) $(ARGS)

gateway: bench ## As in `make bench gateway`: measure the gateway alone against nginx; writes its table
	@:

catalogue: bench ## As in `make bench catalogue`: measure the list of images; writes its table
	@:

kills: programs ## kill -9 at random moments while images are imported; RUNS=30, SEED=… repeats one
	@$(STEP) "kills" $(PYTHON) e2e/kills.py --runs $(or $(RUNS),30) $(if $(SEED),--seed $(SEED))

breaks: .venv/.ready ## Break a download at every 5 % in every way, and count what the server sent; ARGS=…
	@$(STEP) "breaks" $(PYTHON) e2e/breaks.py $(ARGS)

up: programs ## A playground: API server, nginx, operator, gateway; STORES=s3,rbd,… starts those too; prints KUBECONFIG
	@$(STEP) "playground" $(PYTHON) -m servers up --stores "$(STORES)"

down: ## Stop the playground; its data stay in .run/
	@[ ! -x $(PYTHON) ] || $(PYTHON) -m servers down

status: ## Say what of the playground runs
	@$(PYTHON) -m servers status

clean: down ## Remove the playground's data, the environment and caches; the built programs stay in ~/.cache
	rm -rf .run .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
