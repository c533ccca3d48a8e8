# Every target installs what it needs into .venv, the first time it runs.
#
#   make demo [AUDIO=talk.mp3]   transcribe a sample, or a file of yours, with the built-in model
#   make test                    the tests; the parity tests run if `make oracles` was called before
#   make kernels                 the GPU kernels: their results in Triton's interpreter, and their machine code; no GPU
#   make lint                    style, types, import order
#   make docs                    the documentation site in build/site, in strict mode
#   make coverage                the tests, with the lines that they do not reach
#   make dist                    wheel and source distribution in dist/, installed and checked in a new environment
#   make bench                   milliseconds per frame, and concurrent streams, on this machine; needs 15 GB of memory
#   make setup                   the environment for work on Slipstream itself
#   make ray                     the tests on a local Ray, in a separate environment; about four minutes
#   make oracles                 the reference packages that the parity tests compare with
#   make clients                 the clients of other products that the server's tests run, and what checks deploy/
#   make tiny DATA=folder        train a model on a Whisper encoder: recipes/tiny/README.md; hours

PYTHON ?= python3
AUDIO  ?= examples/sample.opus

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PINS := pyproject.toml constraints.txt Makefile

.PHONY: setup demo test kernels lint docs coverage dist bench ray oracles clients tiny

setup: $(VENV)/.dev

demo: $(VENV)/.core
	@$(BIN)/slipstream transcribe --words "$(AUDIO)"

# One process per core with one thread each: the tests' models are small.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

# Two processes: the interpreter replaces the compiler when the kernels are imported.
KERNELS := PYTHONPATH=$(VENV)/triton OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:cacheprovider

kernels: $(VENV)/.triton
	TRITON_INTERPRET=1 $(KERNELS) tests/kernels/test_interpreted.py
	$(KERNELS) tests/kernels/test_compiled.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_style.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal \
	    --cov=slipstream --cov-report=term-missing:skip-covered

dist: $(BIN)/python
	$(BIN)/python tools/build_dist.py

# One environment for Ray, which sees the packages of the other one. Ray's own warnings are no errors.
RAY := OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=60 $(VENV)/ray/bin/python

ray: $(VENV)/ray/.done
	$(RAY) -m pytest -p no:unraisableexception -W ignore tests/ray

bench: $(VENV)/.oracles
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.cpu step
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.load

oracles: $(VENV)/.oracles

clients: $(VENV)/.clients

tiny: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" sh recipes/tiny/make.sh "$(DATA)"

# Stamp files record what is installed. They are renewed when a pinned version changes.

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(PINS) | $(BIN)/python
	@echo "Installing Slipstream into $(VENV) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	@echo "Installing Slipstream with its tools and backends into $(VENV) (minutes, the first time) ..."
	@$(PIP) --editable ".[dev,torch,mlx,server,otel,train,webrtc,wyoming]"
	@touch $(VENV)/.core $@

# In a separate folder: the interpreter needs numpy < 2.4, and nothing else may find triton next to torch for the CPU.
$(VENV)/.triton: $(VENV)/.dev
	@echo "Installing Triton into $(VENV)/triton ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/triton \
	    triton==3.6.0 'numpy>=2.2,<2.4'
	@touch $@

$(VENV)/ray/.done: $(VENV)/.dev
	@echo "Installing Ray into $(VENV)/ray ..."
	@$(PYTHON) -m venv $(VENV)/ray
	@cd $(VENV)/ray/lib/python*/site-packages && $(CURDIR)/$(BIN)/python -c \
	    "import sysconfig; print(sysconfig.get_path('purelib'))" > dev.pth
	@$(VENV)/ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[ray]"
	@touch $@

$(VENV)/.docs: $(PINS) | $(BIN)/python
	@echo "Installing MkDocs into $(VENV) ..."
	@$(PIP) --editable ".[docs]"
	@touch $(VENV)/.core $@

# moshi and moshi_mlx pin older versions of what we share with them; they run with ours.
$(VENV)/.oracles: $(VENV)/.dev
	@echo "Installing the reference packages into $(VENV) ..."
	@$(PIP) --editable ".[dev,torch,mlx,server,otel,train,webrtc,wyoming,oracles]"
	@$(PIP) --no-deps moshi moshi_mlx
	@touch $@

$(VENV)/.clients: $(VENV)/.dev
	@echo "Installing the clients of other products and the checks of deploy/ into $(VENV) ..."
	@$(PIP) --editable ".[dev,torch,mlx,server,otel,train,webrtc,wyoming,clients-test,deploy-test]"
	@touch $@
