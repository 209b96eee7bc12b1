# Two commands on a fresh machine: `make demo` and `make test`. Both go through `make venv`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
EXTRAS := kernels,gramian,mpi,interchange,parquet,slurm,test,lint
CSRC   := CMakeLists.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: venv demo test ctest lint format bench clean

venv: $(STAMP)

# The lock pins every package; --no-build-isolation lets the one source build (this project) use the pinned build tools
# and keep its objects in build/native, so that a change of the C++ compiles that alone.
$(STAMP): pyproject.toml setup.py requirements.lock $(CSRC)
	@$(PYTHON) -c 'import sys; sys.exit("mnmt_scale needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c requirements.lock setuptools wheel cmake ninja pybind11
	$(BIN)/python -m pip install -q -c requirements.lock --no-build-isolation -e '.[$(EXTRAS)]'
	$(BIN)/mnmt doctor
	@touch $@

demo: venv
	$(BIN)/mnmt demo

test: venv
	$(BIN)/python -m pytest

# The C++ alone, under the address and undefined-behaviour sanitizers.
ctest: venv
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DMNMT_PYTHON=OFF -DMNMT_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(filter-out CMakeLists.txt,$(CSRC))

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter-out CMakeLists.txt,$(CSRC))

bench: venv
	$(BIN)/mnmt bench kernels
	$(BIN)/mnmt bench data
	$(BIN)/mnmt bench train
	$(BIN)/mnmt bench decode

clean:
	rm -rf $(VENV) build *.egg-info
