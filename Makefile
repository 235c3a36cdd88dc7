# Every target sets up what it needs; only Python 3.10+ with venv and a C++ compiler must be there.
PYTHON ?= python3
OUT ?= out/demo
TRAIN_OUT ?= out/train
# Processes that run tests, each with one thread and at most 3 GiB.
WORKERS ?= 2
FUZZ_INPUTS ?= 1000000
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
TYPES := build/types
DEMO_MODEL := sam2.1-nano
IN_PARALLEL = -n $(WORKERS) --dist worksteal

# Both names, so that what builds the package is pinned as well: pip 25.3 split them.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all fuzz lint format types bench quality train bundle \
	wheel-check clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 14

install: $(VENV)/.installed  ## Install vkrt with all extras into .venv

demo: $(VENV)/.demo  ## Segment photos and track a clip with the demo model, without torch: out/demo
	$(BIN)/python -m vkrt.demo --out $(OUT)

test: lint  ## Lint, check types and run the quick tests
	$(BIN)/pytest -m "not slow" $(IN_PARALLEL)

test-all: lint  ## Lint, check types and run every test
	$(BIN)/pytest $(IN_PARALLEL)

fuzz: $(VENV)/.installed  ## Give every parser a million damaged inputs (FUZZ_INPUTS), some hours
	FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/pytest tests/fuzz

lint: $(VENV)/.installed  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types

format: $(VENV)/.installed  ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# kernels/ and export/ are vkrt.kernels and vkrt.export once installed; mypy needs to see them there.
types: $(VENV)/.installed
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/vkrt
	@cd $(TYPES)/vkrt && ln -s ../../../vkrt/* ../../../kernels ../../../export .
	@ln -s ../../benchmarks $(TYPES)/benchmarks
	cd $(TYPES) && ../../$(BIN)/mypy -p vkrt -p benchmarks --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache

bench: $(VENV)/.installed  ## Measure against the peers: benchmarks/results.csv, bars.csv
	$(BIN)/python -m benchmarks.segment

quality: $(VENV)/.installed  ## Measure the demo model on 500 held-out scenes: benchmarks/quality.csv
	$(BIN)/python -m benchmarks.quality

train: $(VENV)/.installed  ## Train the demo model, or go on: pictures, then tracking: out/train
	$(BIN)/python -m vkrt.demo.train --out $(TRAIN_OUT)
	$(BIN)/python -m vkrt.demo.track_train --out $(TRAIN_OUT)/track \
		--start-from "$$(ls -v $(TRAIN_OUT)/part-*/$(DEMO_MODEL).safetensors | tail -n 1)"

bundle: $(VENV)/.installed  ## Export the demo model's weights into the bundle that ships with vkrt
	$(BIN)/vkrt export $(DEMO_MODEL) --precision fp16 --force \
		--out vkrt/demo/weights/$(DEMO_MODEL).vkrt

wheel-check: $(VENV)/.installed  ## Build the wheel, install it elsewhere, import all of it
	$(BIN)/python .ci/check_wheel.py

clean:  ## Remove what was built; .venv stays
	rm -rf build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f vkrt/*.so

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit( \
		"vkrt needs Python 3.10 or newer, not %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SOURCES) | $(BIN)/pip
	$(BIN)/python -m pip install -q -e '.[cpu,demo]'
	@touch $@

$(VENV)/.installed: $(SOURCES) | $(BIN)/pip
	$(BIN)/python -m pip install -q -e '.[test,dev]'
	@touch $@ $(VENV)/.demo
