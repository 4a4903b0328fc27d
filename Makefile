# `make` prints this file's targets; every target works from a bare clone.
VENV   ?= .venv
PYTHON ?= python3
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install lint quick test test-gpu bench bench-gpu demo shards study monitor tree clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with every dependency, at the tested versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' not found: install Python 3.10 or newer (Debian: apt-get install python3 python3-venv), or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; v=sys.version_info; sys.exit(0 if v >= (3, 10) else f"make: {sys.executable} is Python {v[0]}.{v[1]}; wanted 3.10 or newer: name one with PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: Python's venv module is missing (Debian: apt-get install python3-venv)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (PyTorch, DeepSpeed, DALI: one or two minutes, longer with CUDA)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	@touch $@

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Unit test files that start stages, a Prometheus or ranks, or train networks: most of the time of the unit tests. (By
# processor time, with `--durations`; a file that is renamed must be renamed here.)
SLOW = \
  cluster/monitoring/test_gone_run.py cluster/monitoring/test_monitoring.py cluster/monitoring/test_notifier.py \
  cluster/ranks/test_rendezvous.py cluster/test_telemetry_tls.py evaluation/embedding/test_sources.py \
  evaluation/reports/test_report.py export/test_package.py \
  export/test_precision.py export/test_readers.py planning/test_measured.py planning/test_planning.py \
  recipe/test_from_arcface_torch.py rendering/scene/test_camera.py rendering/test_photo.py \
  rendering/test_recognition.py training/test_advice.py

quick: lint ## lint, and the unit tests without the slow files: under two minutes on two cores
	$(BIN)/pytest -n 2 --dist worksteal tests/unit $(SLOW:%=--ignore=tests/unit/%) $(ARGS)

test: $(STAMP) ## every test that needs no GPU (with a GPU, those too)
	$(BIN)/pytest -n auto --dist worksteal $(ARGS)

bench: $(STAMP) ## benchmarks against floor and peers; writes runs/bench/*.json
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} $(BIN)/python -m pytest tests/benchmarks -q -s -p no:xdist -p no:logging -o addopts=--import-mode=importlib $(ARGS)

# With `VENV=` (empty) these two run in the Python that PYTHON names, on a machine that has everything and may install
# nothing. A warning of another version of a library is no failure there.
ON_GPU = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(if $(VENV),$(BIN)/python,$(PYTHON)) -m pytest -p no:xdist -W default

test-gpu: $(if $(VENV),$(STAMP)) ## the tests that need a GPU: a few minutes
	$(ON_GPU) tests/gpu $(ARGS)

bench-gpu: $(if $(VENV),$(STAMP)) ## benchmarks on the GPU, against floor and arcface_torch: ten minutes (ARGS="-k head": a part)
	$(ON_GPU) tests/benchmarks/gpu -q -s -p no:logging -o addopts=--import-mode=importlib $(ARGS)

# --- the demo: each file is a finished stage, so that a second `make demo` does nothing twice ---
DEMO    = runs/demo
TRAINED = $(DEMO)/checkpoints/step-00000200/meta.json
# A rank on the only GPU, two on two GPUs; without any, two on the CPU.
GPUS   := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
RANKS_OF_DEMO = $(if $(filter 1,$(GPUS)),1,2)
ON_CPU  = $(if $(filter 0,$(GPUS)),CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu)
FREE_PORT = $$($(BIN)/python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

demo: $(DEMO)/report.html ## real faces to a verified embedding, on GPUs or two CPU ranks: writes runs/demo/report.html
	@echo "look at $(CURDIR)/$(DEMO)/report.html"

$(DEMO)/faces/test/pairs.tsv: | $(STAMP)
	$(BIN)/python stages/demo_faces.py $(DEMO)/faces

$(DEMO)/shards/manifest.json: $(DEMO)/faces/test/pairs.tsv
	$(BIN)/python stages/shard.py $(DEMO)/faces/train $(DEMO)/shards

$(TRAINED): $(DEMO)/shards/manifest.json
	PATH="$(CURDIR)/$(BIN):$$PATH" $(ON_CPU) deepspeed --num_gpus $(RANKS_OF_DEMO) --master_port $(FREE_PORT) \
	  stages/train.py --recipe stages/recipes/demo.yaml --run $(DEMO) --resume auto

$(DEMO)/report.html: $(TRAINED)
	$(BIN)/python stages/evaluate.py $(DEMO) --images $(DEMO)/faces/test --pairs $(DEMO)/faces/test/pairs.tsv \
	  --name "people never seen" --step 0 --step last --report

shards: $(STAMP) ## SRC=folder OUT=folder: identity folders of aligned faces to WebDataset tars
	@test -n "$(SRC)" && test -n "$(OUT)" || { echo "usage: make shards SRC=folder-of-identity-folders OUT=folder"; exit 2; }
	$(BIN)/python stages/shard.py "$(SRC)" "$(OUT)" $(ARGS)

study: $(STAMP) ## STUDY=file DATA=folder [OUT=folder] [RANKS=1]: arms × seeds trained, evaluated, in one table
	@test -f "$(STUDY)" && test -d "$(DATA)" || { echo "usage: make study STUDY=stages/studies/casia.yaml DATA=folder [OUT=folder] [RANKS=1] (DATA holds what the study names: shards, images, pairs)"; exit 2; }
	$(BIN)/python stages/study.py "$(STUDY)" --data "$(DATA)" $(if $(OUT),--out "$(OUT)") --ranks $(or $(RANKS),1) $(ARGS)

# `exec`: make passes TERM on to the shell, which would end alone.
monitor: ## RUN=folder: a run's panels and alerts as a live page, out of a Prometheus of its own
	@test -d "$(RUN)" || { echo "usage: make monitor RUN=folder-of-a-run"; exit 2; }
	exec $(PYTHON) -m cluster.monitoring.live "$(RUN)" $(ARGS)

tree: ## print every module with the first line of its docstring
	@git ls-files 'pipeline/*.py' 'cluster/*.py' 'stages/*.py' | $(PYTHON) -c 'import ast, sys; [print(f"{f:<52}{(ast.get_docstring(ast.parse(open(f).read())) or str()).splitlines()[0]}") for f in sys.stdin.read().split()]'

clean: ## remove .venv and runs
	rm -rf $(VENV) runs
