# `make demo` runs a tiny model, `make test` the tests; each sets up its own environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= Once upon a time

.PHONY: demo test check javascript clean

demo: $(VENV)/installed
	$(BIN)/python tools/tiny_model.py build/tiny.gguf
	$(BIN)/gmoe run build/tiny.gguf "$(PROMPT)" --max-tokens 32 --temperature 1 --seed 2 --raw --verbose

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml CMakeLists.txt $(wildcard kernels/cpu/*)
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

javascript:  # what the test of Ollama's client for JavaScript needs; without it that test is skipped
	npm install --prefix tests/javascript --no-audit --no-fund --no-package-lock

clean:
	rm -rf $(VENV) build
