# Everything one runs here, and nothing else runs it differently: CI and people call these.

PYTHON ?= python3
# A CPU wheel, or another build: make demo TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
PROMPT ?= a red circle on a blue background
SEED ?= 1
OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
# Its options: BENCH=--quick, BENCH="--only stage_1 --repeat 3" ...; "BENCH=--help" tells all.
BENCH ?=

OUT := $(OUT)

BIN := .venv/bin
# Two at a time, each with one thread: faster on two cores than one with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
# Options and files for it; left out: everything.
TESTS ?=
READY := .venv/.ready

# Which lists of tests/environments to check: ENVIRONMENTS="kaggle-2026-05 newest"; left out: CI's.
ENVIRONMENTS ?=

.PHONY: demo test quick coverage test-environments check docs format bench bench-batch bench-predictions gpu-check gpu-pack footprints notebooks pictures train-demo clean

demo: $(READY) ## draw PROMPT with the bundled cascade and its 8-bit text encoder
	@$(BIN)/lowmem-if generate "$$PROMPT" --cascade demo --seed $(SEED) --out "$(OUT)" \
		--pin text_encoder=resident:int8
	@$(BIN)/lowmem-if show "$(OUT)"
	@echo "The picture is $(OUT)/0000.png"

test: $(READY) ## all tests (TESTS="tests/planning -k ladder": some)
	$(PYTEST) $(TESTS)

quick: $(READY) ## the tests that start no worker process and are not slow, in two minutes or so
	$(PYTEST) -m "not worker and not slow" $(TESTS)

coverage: $(READY) ## which lines of the package the tests run, workers' lines too
	rm -f .coverage*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -q $(TESTS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-environments: $(READY) ## install the wheel where other libraries are, as on Colab, and test it there
	$(BIN)/python tests/environments/check.py $(ENVIRONMENTS)

check: $(READY) ## style, types, floors, spelling, fresh documents, and the documentation site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/python docs/blocks.py --check
	$(MAKE) --no-print-directory docs

docs: $(READY) ## the documentation site, into build/docs; warnings and broken links fail
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env -b html docs build/docs

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/blocks.py

bench-batch: $(READY) ## a batch against separate runs of the documented recipe, into bench/RESULTS.md
	$(BIN)/python -m bench.batch $(BENCH)

bench: $(READY) ## ways of loading and running side by side, into bench/RESULTS.md (BENCH=--quick: minutes)
	$(BIN)/python -m bench $(BENCH)

bench-predictions: $(READY) ## predicted against measured, into bench/RESULTS.md (an hour; needs 14 GB of disk)
	$(BIN)/python -m bench.predictions $(BENCH)

gpu-check: $(READY) ## measure on this GPU what only a card can tell, into docs/gpu/ (8 minutes)
	$(BIN)/python -m bench.gpu $(BENCH)

gpu-pack: $(READY) ## pack the check for a machine with a GPU but no registry, into build/gpu-pack
	$(BIN)/python -m bench.gpu.pack $(BENCH)

notebooks: $(READY) ## run the notebooks with the demo and keep their outputs
	$(BIN)/python notebooks/execute.py

footprints: $(READY) ## simulate what the shipped table of footprints lacks (rm it first: everything)
	$(BIN)/python -m lowmem_if.simulate.write_memory_table

pictures: $(READY) ## draw the documents' pictures again, after the demo's weights have changed
	PYTHONPATH=. $(BIN)/python docs/pictures.py

train-demo: $(READY) ## train the bundled cascade again, into build/
	$(BIN)/python -m training

clean:
	rm -rf .venv runs

# torch goes first, so that nothing pulls another build of it.
$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (some minutes, most of it torch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $(READY)

export PROMPT
