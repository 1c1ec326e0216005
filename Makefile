# make quickstart · make test: each sets up everything it needs, in .venv, from the lock. `make help` lists the rest.
# PYTHON=python3.12 chooses the interpreter of .venv; ARGS="..." is handed to the command that runs.

PYTHON ?= python3
ARGS ?=
LOCK := requirements/cpu.lock
UV := $(shell sed -n 's/.*"\(uv==[^"]*\)".*/\1/p' pyproject.toml)

# torch's CPU build is not on the package index. uv knows the project's own site; pip users who keep the wheel in a folder
# have it in PIP_FIND_LINKS, which uv does not read. TORCH="..." overrides both.
ifneq ($(strip $(PIP_FIND_LINKS)),)
TORCH ?= $(foreach place,$(PIP_FIND_LINKS),--find-links $(place))
else
TORCH ?= --torch-backend cpu
endif

# ninja, which DeepSpeed calls by name, is in .venv/bin. Bytecode is kept, whatever the environment says: a run on Ray starts
# a dozen processes, and one that imports vLLM takes 5 seconds with it and 14 without.
RUN := env -u PYTHONDONTWRITEBYTECODE PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: help quickstart test check bench lock setup
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1: \2/p' Makefile

quickstart: .venv/installed ## a tiny speech LLM learns by alignment, SFT, distillation, DPO and RLBR, from nothing, on two cores
	@$(RUN) .venv/bin/rlspeech pipeline recipes/tiny/quickstart.toml --resume $(ARGS)

test: .venv/installed ## the test suite, in two processes; with ARGS="tests/test_x.py ..." what they name, in one
	@$(RUN) .venv/bin/python $(if $(strip $(ARGS)),-m pytest $(ARGS),tests/halves.py)

check: .venv/installed ## ruff, its formatter, pyright
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/pyright

bench: .venv/installed ## every file of benchmarks/, one after the other
	@for file in $(sort $(wildcard benchmarks/*.py)); do $(RUN) .venv/bin/python $$file $(ARGS) || exit; done

setup: .venv/installed ## .venv, without running anything

lock: .venv/bin/uv ## resolve pyproject.toml anew into requirements/cpu.lock; add ARGS=--upgrade for newer versions
	@mkdir -p $(dir $(LOCK))
	@.venv/bin/uv pip compile --quiet pyproject.toml --extra cpu --extra tiny --extra dev \
		--python-version 3.11 $(TORCH) --custom-compile-command "make lock" --output-file $(LOCK) $(ARGS)

# --no-build-isolation: the lock holds setuptools, so the project itself is installed without a download.
.venv/installed: $(LOCK) pyproject.toml | .venv/bin/uv
	@echo "Installing $(LOCK) into .venv (once, about 4 GB)"
	@.venv/bin/uv pip sync --quiet --python .venv/bin/python $(TORCH) $(LOCK)
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
		|| { echo "PYTHON=$(PYTHON) is not Python 3.11 or 3.12; name one: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check $(UV)
