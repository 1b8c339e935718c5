# Every target says what it does in `make help`.
# 3.11, or whichever of 3.12, 3.13 is there; asked when .venv is made.
PYTHON ?= $(shell .ci/python)
# The interpreter that has the GPU's torch.
GPU_PYTHON ?= python3
VENV := .venv
DOCS := .venv-docs
BIN := $(VENV)/bin
# uv has its own word for what pip calls PIP_FIND_LINKS.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# A line is dozens of processes: where the environment forbids it, each would compile torch's and diffusers' sources anew (10 s).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo-needs demo results results-quick bench gpu faults test test-pythons test-slow test-cluster test-debian check docs notice release-check format golden images image-requirements clean

help: ## say what each target does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(VENV)/installed ## make .venv from the lock (done by every target that needs it)

# torch first and by itself: its wheel is the machine's choice (CPU or CUDA), everything else is the lock's.
$(VENV)/installed: requirements.lock pyproject.toml
	@python="$(PYTHON)" && test -n "$$python" && echo "$$python -m venv $(VENV)" && $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==0.13.8
	.ci/torch $(BIN)/uv $(BIN)/python torch==2.13.0
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo-needs:
	@.ci/demo-needs

demo: demo-needs install ## the full pipeline at toy size: teacher, LCM and RG-LCM, a table and a report (5 minutes on two cores)
	@$(BIN)/rglcd toy data data
	@$(BIN)/python -m pipelines run
	@$(BIN)/rglcd show
	@$(BIN)/rglcd adopt

results: install ## the claims of the method at toy size over three seeds, into docs/results.md (hours; goes on where it stopped)
	$(BIN)/rglcd toy data data
	$(BIN)/python -m benchmarks.results

results-quick: install ## the same with one seed
	$(BIN)/rglcd toy data data
	$(BIN)/python -m benchmarks.results --seeds 1

bench: install ## what a training step costs, at toy size on this machine (BENCH="--model sd21 --precision bfloat16 --record" on a GPU, "--model sd21 --device meta" to count); a JSON line
	@$(BIN)/python -m benchmarks.step $(BENCH)

gpu: ## what this machine's GPU does with it, in 8 minutes; needs CUDA and a torch of its own, installs into no environment (WHEELS=dir, GPU="--only tests")
	@$(GPU_PYTHON) -m benchmarks.gpu $(if $(WHEELS),--wheels $(WHEELS)) $(GPU)

faults: install ## inject faults, thousands of times, into docs/reliability.md (hours; goes on where it stopped; one row: FAULTS="-k F4-")
	@mkdir -p artifacts/faults
	PYTEST_DEBUG_TEMPROOT=artifacts/faults OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -v -m fault --rounds all $(FAULTS)

test: install ## the default suite (9 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-pythons: install ## a base installation and the micro line with Python 3.12 and 3.13, where this machine has them (fetches a torch for each)
	.ci/pythons --micro

test-slow: install ## the micro pipeline through every interface, kills and process groups
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

test-cluster: install ## against a real API server and scheduler: needs kubectl >= 1.27 and KUBEBUILDER_ASSETS
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster

check: install ## format, lint, types, layers
	$(BIN)/ruff format --check src components pipelines tests benchmarks docs/hooks .ci
	$(BIN)/ruff check src components pipelines tests benchmarks docs/hooks .ci
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## put the code in shape
	$(BIN)/ruff format src components pipelines tests benchmarks docs/hooks .ci
	$(BIN)/ruff check --fix src components pipelines tests benchmarks docs/hooks .ci

images: ## build, push and pin the images of a release: make images PREFIX=registry.example.org/team (see images/release)
	images/release "$(PREFIX)"

image-requirements: install ## write what each image installs, from pyproject.toml and the lock
	$(BIN)/uv pip compile -q --no-annotate --no-header -c requirements.lock --extra kfp --extra torchx pyproject.toml | grep -xFf requirements.lock > images/step/requirements.txt
	{ $(BIN)/uv pip compile -q --no-annotate --no-header -c requirements.lock --extra train pyproject.toml | grep -xFf requirements.lock; grep '^kfp==' requirements.lock; } | sort > images/train/requirements.txt

test-debian: install ## build, publish and run the images; run the alerts; drive the study's page (root and Debian's packages: it says which; 4 minutes of CPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m debian

golden: install ## write the golden files anew; read the diff before committing it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --update-golden

docs: $(DOCS)/installed ## build the documentation site into site/, strictly: a dead link is an error (its own environment, .venv-docs; no torch)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

$(DOCS)/installed: requirements.lock pyproject.toml
	@python="$(PYTHON)" && test -n "$$python" && echo "$$python -m venv $(DOCS)" && $$python -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[docs]'
	@touch $@

notice: install ## write NOTICE anew: what is shipped and installed, with licences, as the lock's packages declare them
	$(BIN)/python .ci/notice.py > .NOTICE.unfinished && mv .NOTICE.unfinished NOTICE

release-check: install ## what must hold before a version is given away: versions, date, licences, wheel, images, docs (CHECK="wheel docs" for some)
	@$(BIN)/python .ci/release_check.py $(CHECK)

clean: ## remove what the stages made; data/ and .venv stay
	rm -rf artifacts
