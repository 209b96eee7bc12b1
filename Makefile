# Two commands on a fresh machine: `make demo` and `make test`. Both go through `make venv`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
EXTRAS := mpi,interchange,parquet,test,lint

.PHONY: venv demo test lint format bench clean

venv: $(STAMP)

# The lock pins every package; --no-build-isolation lets the one source build (this project) use the pinned setuptools.
$(STAMP): pyproject.toml setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("mnmt_scale needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c requirements.lock setuptools wheel
	$(BIN)/python -m pip install -q -c requirements.lock --no-build-isolation -e '.[$(EXTRAS)]'
	$(BIN)/mnmt doctor
	@touch $@

demo: venv
	$(BIN)/mnmt demo

test: venv
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv
	$(BIN)/mnmt bench data
	$(BIN)/mnmt bench train
	$(BIN)/mnmt bench decode

clean:
	rm -rf $(VENV) build *.egg-info
