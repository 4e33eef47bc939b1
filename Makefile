# `make demo` and `make test` are the two commands; each target installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
# Small batched kernels lose by many threads: idle OpenMP workers spin at every barrier.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
export OMP_WAIT_POLICY := passive
export MPLBACKEND := agg
# `make bench DATA_DIR=folder` adds the tables that no package carries.
DATA := $(if $(DATA_DIR),--data-dir $(DATA_DIR))
EXAMPLES := $(sort $(wildcard examples/plot_*.py))

.PHONY: demo test test-slow check docs bench clean
.DEFAULT_GOAL := test

demo: $(VENV)/.plot
	$(ONE_THREAD) $(BIN)/python examples/plot_compare_imputers.py --figure results/compare_imputers.png

test: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses 2 -m "not slow"

test-slow: $(VENV)/.test
	$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses 2 -m slow

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell skbilevel tests examples docs README.md
	$(ONE_THREAD) $(BIN)/python -m pytest --doctest-modules skbilevel -m "not slow"
	$(ONE_THREAD) SCIPY_ARRAY_API=1 $(BIN)/python -m pytest --numprocesses 2 -m "not slow"
	set -e; for example in $(EXAMPLES); do echo "$$example"; $(ONE_THREAD) $(BIN)/python "$$example" > /dev/null; done

docs: $(VENV)/.docs
	$(ONE_THREAD) SKBILEVEL_QUICK=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.bench
	$(ONE_THREAD) $(BIN)/python examples/benchmarks/bench_contract.py
	$(ONE_THREAD) $(BIN)/python examples/benchmarks/bench_gaussian.py $(DATA)
	$(ONE_THREAD) $(BIN)/python examples/benchmarks/bench_not_at_random.py $(DATA)

clean:
	rm -rf $(VENV) build dist results docs/_build docs/gallery docs/api/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

# One rule for every extra of pyproject.toml: .venv/.test holds the extra `test`, and so on.
$(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[$*]'
	touch $@
