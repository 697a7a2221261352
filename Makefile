# `make demo` and `make test` are all that a newcomer needs; each sets up what it uses.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Numerics run in worker processes, one a core; threads inside them would only fight.
export OMP_NUM_THREADS ?= 1

# Tests of one file share their keys and testnets, so files are what is spread over the cores, the longest first
# (tests/conftest.py); the plugin's own order, by the number of tests, would begin the longest last.
PARALLEL ?= -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint format bench results reference newcomer fuzz compose-test reliability reliability-containers adversary lock sbom audit clean

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## Virtual environment .venv with everything needed (a second run has nothing to do)
	@$(PYTHON) scripts/setup.py

demo: setup  ## A testnet of five processes mines an encrypted task to its last milestone
	$(BIN)/python -m benchmarks.demo $(ARGS)

test: setup  ## Every test but the slow ones
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-slow: setup  ## The slow tests: full ring size, many steps
	$(BIN)/python -m pytest -m slow $(PARALLEL) $(ARGS)

simulate: setup  ## A thousand seeded simulations of consensus, and a hundred with a third or more of liars
	$(BIN)/python -m tests.simulation --runs 1000 --attacks 100 $(ARGS)

soak: setup  ## Ten thousand seeded simulations of consensus, and a thousand with a third or more of liars
	$(BIN)/python -m tests.simulation --runs 10000 --attacks 1000 $(ARGS)

lint: setup  ## Style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Rewrites the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Speed and memory, against the figures the project promises
	$(BIN)/python -m benchmarks.bench $(ARGS)

results: setup  ## Real pairs mined (BMIF_DATA=folder that holds fusion/), with metrics; ARGS=--full: every fold
	$(BIN)/python -m benchmarks.results $(ARGS)

reference: setup  ## Renews docs/reference/ from the program: commands, settings, routes
	$(BIN)/python -m scripts.reference $(ARGS)

newcomer: setup  ## Does what docs/QUICKSTART.md says, from a clone of what is committed
	$(BIN)/python -m tests.testnet.newcomer

fuzz: setup  ## Coverage-guided fuzzing of every decoder (ARGS="--seconds 600 --target 'codec.*' --keep")
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/fuzz.lock
	$(BIN)/python -m tests.fuzz $(ARGS)

compose-test: setup  ## The testnet as containers; makes a Docker engine of its own if none runs (root, Debian)
	bash tests/testnet/compose.sh

reliability: setup  ## Nets of real nodes under faults, as processes and containers; renews docs/RELIABILITY.md
	$(BIN)/python -m benchmarks.reliability $(ARGS)

reliability-containers: setup  ## The same faults with containers alone; the page is left as it is
	bash tests/testnet/compose.sh reliability $(ARGS)

adversary: setup  ## Attacks on honest nodes and what each gained; renews docs/ADVERSARIES.md
	$(BIN)/python -m benchmarks.adversary --write $(ARGS)

# One command line for every lock: hashes, no index, no local path. torch and Pyfhel are left out (scripts/setup.py).
COMPILE = PIP_CONFIG_FILE=/dev/null ../$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --newline lf $(UPGRADE)
APART   = --unsafe-package torch --unsafe-package pyfhel --unsafe-package pip

lock: setup  ## Renews the lock files (UPGRADE=--upgrade for newer versions)
	cd scripts && $(COMPILE) $(APART) -o ../requirements.lock ../pyproject.toml
	cd scripts && $(COMPILE) $(APART) --extra dev -c ../requirements.lock -o ../requirements-dev.lock ../pyproject.toml
	cd scripts && $(COMPILE) --unsafe-package pip -o pyfhel-build.lock pyfhel-build.in
	cd scripts && $(COMPILE) -o fuzz.lock fuzz.in
	cd scripts && $(COMPILE) --unsafe-package pip -o audit.lock audit.in

# The tools live in an environment of their own: neither runtime nor tests need them.
AUDIT = build/audit
SBOM ?= out/sbom.json

$(AUDIT)/.done: scripts/audit.lock
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/audit.lock
	touch $@

# The runtime lock, and the two packages that scripts/setup.py installs apart from it.
$(AUDIT)/runtime.txt: requirements.lock scripts/setup.py $(AUDIT)/.done
	cp requirements.lock $@
	sed -n -e 's/^TORCH = "\(.*\)"/torch==\1/p' -e 's/^PYFHEL = "\(.*\)"/pyfhel==\1 \\/p' \
	  -e 's/^PYFHEL_SDIST_SHA256 = "\(.*\)"/    --hash=sha256:\1/p' scripts/setup.py >> $@

sbom: $(AUDIT)/runtime.txt  ## What the runtime is made of, as CycloneDX JSON, validated and compared with the lock (SBOM=out/sbom.json)
	mkdir -p $(dir $(SBOM))
	$(AUDIT)/bin/cyclonedx-py requirements --output-reproducible --validate -o $(SBOM) $(AUDIT)/runtime.txt
	$(PYTHON) scripts/sbom_check.py $(SBOM)

audit: $(AUDIT)/runtime.txt  ## Known weaknesses of what is locked; asks the advisory service, so it is not part of CI
	@for lock in $(AUDIT)/runtime.txt requirements-dev.lock; do \
	  sed 's/ *--hash=[^ ]*//; s/ *\\$$//' $$lock > $(AUDIT)/asked.txt; \
	  $(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip -r $(AUDIT)/asked.txt || \
	  { echo "audit of $$lock failed: a weakness above, or the advisory service could not be reached" >&2; exit 1; }; \
	done

clean:  ## Removes what builds and runs left in the tree; not the cache of wheels
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf run out testnet demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
