# `make demo` runs the model that comes with gmoe, `make test` the tests; each sets up its own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= Once upon a time there was

.PHONY: demo test check javascript clean

demo: $(VENV)/installed
	$(BIN)/gmoe run demo "$(PROMPT)" --max-tokens 120 --temperature 0.7 --seed 1 --raw --verbose

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# The CPU kernels built with ASan and UBSan, in an environment of their own beside the usual one, and their tests.
SANITIZED := build/sanitized
sanitize: $(VENV)/installed-dev
	$(MAKE) sanitize-run PACKAGES=$$($(BIN)/python -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])")

sanitize-run:
	$(PYTHON) -m venv $(SANITIZED)
	echo $(PACKAGES) > $$(echo $(SANITIZED)/lib/python3.*/site-packages)/borrowed.pth
	$(SANITIZED)/bin/python -m pip install -q --no-deps --force-reinstall \
		--config-settings build-dir=$(SANITIZED)/cmake --config-settings cmake.define.GMOE_SANITIZE=ON .
	cp -r tests tools pyproject.toml $(SANITIZED)
	cd $(SANITIZED) && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
		bin/python -m pytest -q -p no:cacheprovider --rootdir . tests/test_kernels_cpu.py tests/test_kernels_safety.py \
		tests/test_step_cpu.py tests/test_recurrent_cpu.py

# The NEON kernels cross-compiled and emulated (Debian: g++-aarch64-linux-gnu, qemu-user).
neon: $(VENV)/installed-dev
	$(BIN)/python -m tools.check_neon

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

SOURCES := pyproject.toml CMakeLists.txt $(wildcard kernels/cpu/*)
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install -q -e ".[dev]"
	touch $(VENV)/installed $@

javascript:  # what the test of Ollama's client for JavaScript needs; without it that test is skipped
	npm install --prefix tests/javascript --no-audit --no-fund --no-package-lock

clean:
	rm -rf $(VENV) build
