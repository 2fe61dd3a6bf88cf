# `make demo` deblurs the sample clip; `make test` runs the tests. Each sets up .venv from nothing and starts
# at once when nothing has changed. PYTHON and TORCH may be set: make test TORCH=torch==2.10.0

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc dblr_fast -type f ! -name '*.pyc' ! -name '*.so') setup.py pyproject.toml

.PHONY: help demo test clean

help:
	@echo "make demo   deblur examples/street.mp4 into demo/, with a before/after picture"
	@echo "make test   run the tests"
	@echo "make clean  remove .venv, demo/ and build products"

demo: $(VENV)/installed
	@mkdir -p demo
	$(BIN)/dblr-fast deblur examples/street.mp4 demo/street.mp4 --overwrite
	$(BIN)/python examples/before_after.py examples/street.mp4 demo/street.mp4 demo/before_after.png

test: $(VENV)/installed
	$(BIN)/pytest tests

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(BIN)/pip install --quiet '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
