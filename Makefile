# `make demo` samples one method, `make repro` runs the experiment and says where to look, `make test` runs every test.
PYTHON ?= python3
METHOD ?= msf
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Telemetry stays off.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0
export DO_NOT_TRACK := 1

.PHONY: help demo repro dashboard flow lint test check bench mutants clean
help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $(STAMP)

demo: $(STAMP) ## Run one method from the data to its grid of samples (METHOD=msf); `make repro` goes on from there
	$(BIN)/python -m flows.reproduce $(METHOD)
	@echo
	@echo "samples: $(CURDIR)/samples/$(METHOD)/grid.png, step by step: $(CURDIR)/samples/$(METHOD)/strip.png"
	@echo "next: make repro runs the other methods and compares all of them"

repro: $(STAMP) ## Run the whole pipeline on params/experiment.yaml (unchanged stages are skipped), then show the leaderboard
	$(BIN)/python -m flows.reproduce
	@echo
	@cat reports/report.md
	@ls samples/*/grid.png samples/*/strip.png
	@echo "report: $(CURDIR)/reports/report.html"

dashboard: $(STAMP) ## Start the dashboard: runs, schedules, results (PORT=4200)
	@exec $(BIN)/python -m flows.dashboard $(if $(PORT),--port $(PORT))

flow: $(STAMP) ## Run what is stale, several stages at once, in the dashboard where one runs (SLOTS=2)
	$(BIN)/python -m flows.reproduce $(if $(SLOTS),--slots $(SLOTS))

test: $(STAMP) ## Run all tests, two files at once
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint ## Lint, format, types, and the tests that start no server, cluster or pipeline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

bench: $(STAMP) ## Compare the speed relative to plain torch with the committed ratios, in two minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.floor

mutants: $(STAMP) ## Break the code in one place at a time and name what no test notices, in minutes (ONLY='*unet*')
	$(BIN)/python tests/mutate.py $(if $(ONLY),--only '$(ONLY)')

clean: ## Remove scratch files (checkpoints of interrupted runs, downloads); results stay
	rm -rf .scratch
