# `make demo` samples one method, `make repro` runs the experiment and says where to look, `make test` runs every test.
PYTHON ?= python3
METHOD ?= msf
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Telemetry stays off.
export PATH := $(abspath $(BIN)):$(PATH)
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0
export DO_NOT_TRACK := 1

.PHONY: help install demo repro dashboard flow lint test check bench mutants docs clean doctor upgrade
help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test]'
	@touch $(STAMP)

install: $(STAMP) ## Build the environment (VENV=.venv), which the other targets also do

demo: $(STAMP) ## Run one method from the data to its samples and its figures (METHOD=msf RECIPE=mine); then make repro
	$(if $(RECIPE),$(BIN)/python -m stages.recipe $(RECIPE))
	$(BIN)/python -m flows.reproduce $(METHOD)
	@echo
	@$(BIN)/python -m stages.summary $(METHOD)
	@echo
	@echo "Look at the samples:          $(CURDIR)/samples/$(METHOD)/grid.png"
	@echo "  and how they come about:    $(CURDIR)/samples/$(METHOD)/strip.png"
	@echo "Compare with other methods:   make repro (goes on from here)"
	@echo "Draw more samples:            . $(BIN)/activate; python -m multiscale sample models/$(METHOD) --out more.png"

repro: $(STAMP) ## Run the whole pipeline on params.yaml (unchanged stages are skipped), then show the leaderboard
	$(BIN)/python -m flows.reproduce
	@echo
	@$(BIN)/python -m stages.summary
	@echo
	@echo "Look at the report:           $(CURDIR)/reports/report.html (table with all columns: report.md)"
	@echo "  and the samples:            $(CURDIR)/samples/METHOD/grid.png, how they come about: strip.png"
	@echo "Change a setting:             . $(BIN)/activate; see 'How to read the pipeline' in README.md"

dashboard: $(STAMP) ## Start the dashboard: runs, schedules, results (PORT=4200)
	@exec $(BIN)/python -m flows.dashboard $(if $(PORT),--port $(PORT))

flow: $(STAMP) ## Run what is stale, several stages at once, in the dashboard where one runs (SLOTS=2)
	$(BIN)/python -m flows.reproduce $(if $(SLOTS),--slots $(SLOTS))

test: $(STAMP) ## Run all tests, three files at once: each waits for a third of its time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint ## Lint, format, types and the quick tests, in two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

bench: $(STAMP) ## Compare the speed relative to plain torch with the committed ratios, in two minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.floor

mutants: $(STAMP) ## Break the code in one place at a time and name what no test notices, in minutes (ONLY='*unet*')
	$(BIN)/python tests/mutate.py $(if $(ONLY),--only '$(ONLY)')

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs ## Build the pages as a site, site/index.html; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "pages: $(CURDIR)/site/index.html"

clean: $(STAMP) ## Free what nothing refers to: left by kills or by older settings; results and the next run's files stay
	@$(BIN)/python -m flows.clean

doctor: $(STAMP) ## Check this machine: versions, ports, disk, memory, threads, processor, weights; says what to do
	@$(BIN)/python -m stages.doctor

NEW := .scratch/upgrade
upgrade: ## Resolve a pin anew, or all, in an environment of its own, test it, show what changes (PACKAGE=pillow)
	@rm -rf $(NEW) && mkdir -p $(NEW)
	grep -viE '^$(or $(PACKAGE),.+)==' constraints.txt > $(NEW)/pins.txt
	$(MAKE) install VENV=$(NEW)/venv CONSTRAINTS=$(NEW)/pins.txt
	$(NEW)/venv/bin/python -m pip install --quiet --constraint $(NEW)/pins.txt --editable '.[test,docs]'
	$(NEW)/venv/bin/python -m pip check
	$(NEW)/venv/bin/python .ci/pins.py > $(NEW)/constraints.txt
	$(MAKE) check VENV=$(NEW)/venv CONSTRAINTS=$(NEW)/pins.txt
	-@git diff --no-index --unified=0 constraints.txt $(NEW)/constraints.txt
	@echo "To take it: cp $(NEW)/constraints.txt constraints.txt; make install repro"
