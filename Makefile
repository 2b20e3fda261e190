# Every target makes its own virtual environment when there is none. Another place for it: make test VENV=elsewhere
VENV ?= .venv
PYTHON ?= python3

SYSTEM ?= systems/alanine_dipeptide_vacuum
SEED ?= 1
EVALUATIONS ?=
WORKERS ?=
OUTPUT ?=

TEST_WORKERS ?= 2
PYTEST_ARGS ?=

# One thread a process: the parallelism is in the workers.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1 OPENMM_CPU_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format bench tutorials docs clean

help:
	@echo "make demo    the free-energy surface of alanine dipeptide, from one structure, in a new folder under runs/"
	@echo "             (SEED=1 EVALUATIONS=force evaluations WORKERS=processes OUTPUT=folder SYSTEM=system folder)"
	@echo "make test    the test suite (TEST_WORKERS=2 PYTEST_ARGS=)"
	@echo "make lint    ruff and mypy;  make format  applies what ruff can"
	@echo "make docs    the documentation, in docs/_build/html"
	@echo "make tutorials  executes the notebooks of tutorials/ in place"
	@echo "make bench   every script of benchmarks/ in turn"
	@echo "make clean   removes caches and build files; leaves runs/ and the virtual environment"

venv: $(VENV)/.installed

# The stamp is written last, so an interrupted installation is taken up again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("openmm_sgm needs Python 3.11 or later: make PYTHON=...")'
	test -x "$(VENV)/bin/pip" || $(PYTHON) -m venv "$(VENV)"
	"$(VENV)/bin/pip" install --quiet -c constraints.txt -e ".[dev]"
	@touch "$@"

# A new folder each time: a folder that already holds a run is refused.
demo: venv
	@output="$(OUTPUT)"; \
	if [ -z "$$output" ]; then n=1; while [ -e "runs/demo-$$n" ]; do n=$$((n + 1)); done; output="runs/demo-$$n"; fi; \
	set -- run "$(SYSTEM)" --output "$$output" --seed "$(SEED)" \
	    $(if $(EVALUATIONS),--force-evaluations "$(EVALUATIONS)") $(if $(WORKERS),--workers "$(WORKERS)"); \
	echo "openmm-sgm $$*"; \
	"$(VENV)/bin/openmm-sgm" "$$@"

test: venv
	$(ONE_THREAD) "$(VENV)/bin/pytest" -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: venv
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/mypy" openmm_sgm

format: venv
	"$(VENV)/bin/ruff" check --fix .
	"$(VENV)/bin/ruff" format .

bench: venv
	@test -n "$(wildcard benchmarks/*.py)" || { echo "there is no script in benchmarks/" >&2; exit 2; }
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; "$(VENV)/bin/python" "$$script"; done

tutorials: venv
	"$(VENV)/bin/python" tutorials/execute.py

docs: venv
	"$(VENV)/bin/pip" install --quiet -c constraints.txt -e ".[docs]"
	"$(VENV)/bin/sphinx-build" --quiet -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find openmm_sgm tests tutorials benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
