# Needs make and Python 3.11, 3.12 or 3.13 with its venv module; everything else comes from the package index into .venv.
# Every target installs first, when it must. Nothing here ever deletes a run.

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed

CONFIG ?= configs/demo.py
WORKDIR ?= runs/demo
TRAIN_FLAGS ?=
WORKERS ?= 2
PYTEST_FLAGS ?=
BENCH_FLAGS ?=
LOCK_FLAGS ?=

# A typo in a variable's name is an error, and not a run with the defaults.
SETTABLE = PYTHON CONFIG WORKDIR TRAIN_FLAGS WORKERS PYTEST_FLAGS BENCH_FLAGS LOCK_FLAGS
UNKNOWN := $(filter-out $(SETTABLE),$(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name))))
ifneq ($(filter-out MAKEFLAGS MAKEOVERRIDES -%,$(UNKNOWN)),)
$(error unknown variable $(UNKNOWN): those that can be set are $(SETTABLE))
endif

.PHONY: help install demo test test-slow lint bench lock FORCE
.NOTPARALLEL:

help:
	@sed -n 's/^## //p' Makefile

## make install    .venv from requirements.lock; made anew when the lock or setup.py changed (make PYTHON=python3.12 install: with that Python)
install: $(INSTALLED)

# A PYTHON named by hand, of another version than .venv has, makes .venv anew.
ifneq ($(origin PYTHON),file)
VERSION_OF = $(shell { $(1) -c 'import sys; print(sys.version_info[:2])'; } 2>/dev/null)
ifneq ($(call VERSION_OF,$(PYTHON)),$(call VERSION_OF,$(BIN)/python))
.PHONY: $(INSTALLED)
endif
endif

# The stamp is written last, and .venv is emptied first: an install that was cut short is never taken for a whole one. setuptools and wheel come
# before the rest, so that what has to be built is built with the locked ones.
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
$(INSTALLED): requirements.lock setup.py
	@{ $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; } 2>/dev/null || { \
	  found=$$({ $(PYTHON) -c 'import sys; print("Python %d.%d" % sys.version_info[:2])'; } 2>/dev/null || echo missing); \
	  echo "cdcd_jax needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$found: name one, as in make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu the package python3-venv)." >&2; exit 2; }
	@test ! -e $(VENV) || test -e $(VENV)/pyvenv.cfg || { echo "$(VENV) is not a virtual environment: move it away." >&2; exit 2; }
	@echo "Installing into $(VENV): about 4 GB, a few minutes."
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --constraint requirements.lock setuptools wheel
	$(PIP) install --no-build-isolation --requirement requirements.lock
	$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

## make demo       trains configs/demo.py into runs/demo, samples, scores, reports; a second time it resumes, or redoes what is out of date
##                 (CONFIG=, WORKDIR=: others than these; TRAIN_FLAGS=--config.train.num_steps=300: more flags for the trainer)
demo: $(WORKDIR)/report.html
	@echo "All is done: open $(WORKDIR)/report.html."

# Training is always called: it resumes, or says that the run is complete and leaves metrics.jsonl alone. The rest is redone when it is older than
# that file. An interrupted make deletes the target that it was making, unless the target is PRECIOUS.
METRICS = $(WORKDIR)/metrics.jsonl
SAMPLES = $(WORKDIR)/samples/unconditional.jsonl $(WORKDIR)/samples/prompt.jsonl $(WORKDIR)/samples/template.jsonl
EVALS = $(WORKDIR)/eval/nll.json $(WORKDIR)/eval/samples.json
.PRECIOUS: $(METRICS) $(SAMPLES) $(EVALS) $(WORKDIR)/report.html
SAMPLE = $(BIN)/python -m cdcd_jax.sample --workdir=$(WORKDIR)

$(METRICS): FORCE | $(INSTALLED)
	$(BIN)/python -m cdcd_jax.train --config=$(CONFIG) --workdir=$(WORKDIR) $(TRAIN_FLAGS)

$(WORKDIR)/samples/unconditional.jsonl: $(METRICS)
	$(SAMPLE) --num_samples=16 --output=$@

$(WORKDIR)/samples/prompt.jsonl: $(METRICS)
	$(SAMPLE) --num_samples=4 --seed=1 --prompt="In the beginning" --output=$@

$(WORKDIR)/samples/template.jsonl: $(METRICS)
	$(SAMPLE) --num_samples=4 --seed=2 --template="And the [8] said unto [4], [12]" --output=$@ --trajectory=$(WORKDIR)/samples/trajectory.json

# A pattern, because only with a pattern do two targets of every make share one recipe.
%/eval/nll.json %/eval/samples.json: %/metrics.jsonl %/samples/unconditional.jsonl
	$(BIN)/python -m cdcd_jax.evaluate --workdir=$* --metrics=nll,entropy

$(WORKDIR)/report.html: $(METRICS) $(SAMPLES) $(EVALS)
	$(BIN)/python -m cdcd_jax.report --workdir=$(WORKDIR)

## make test       lint, then every test that is not marked slow (in two processes; WORKERS=0: in one; PYTEST_FLAGS: more of pytest's flags)
test: lint
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(PYTEST_FLAGS)

## make test-slow  the tests that are marked slow
test-slow: install
	$(BIN)/python -m pytest -m slow -n $(WORKERS) $(PYTEST_FLAGS)

## make lint       ruff, mypy, shellcheck, and whether requirements.lock holds what setup.py asks for
lint: install
	$(PIP) check
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/shellcheck -x launch/*.sh launch/gke/*.sh launch/slurm.sbatch

## make bench      the ratios in benchmarks/ (BENCH_FLAGS=--only=train_step_ratio: one of them)
bench: install
	$(BIN)/python -m benchmarks.run $(BENCH_FLAGS)

## make lock       requirements.lock anew from setup.py, for all three Pythons (LOCK_FLAGS=--upgrade: with the newest releases)
lock: install
	$(PIP) install --quiet uv
	$(BIN)/python -m uv pip compile --universal --python-version 3.11 --extra dev --no-annotate --custom-compile-command "make lock" \
	  $(LOCK_FLAGS) setup.py --output-file requirements.lock
