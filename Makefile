# batchrun: `make` lists what there is to do. `make demo` and `make test` need
# nothing beforehand but Python 3.11 or newer (and use uv when it is on PATH).

PYTHON ?= python3
TEST_ARGS ?= -n 6 --dist worksteal

# Whatever environment is active in the calling shell, only .venv counts here. Bytecode is kept: see .venv/.compiled.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench simulate faults audit clean

help:
	@awk -F ' *## *' '/^[a-z]+:.*##/ { sub(/:.*/, "", $$1); printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## watch a whole run against a local emulator; needs no account
	@.venv/bin/batchrun demo

test: .venv/.compiled ## run the tests
	@.venv/bin/python -m pytest $(TEST_ARGS)

check: .venv/.installed ## formatting, lint, types, then the tests
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy --strict
	@$(MAKE) --no-print-directory test

fix: .venv/.installed ## format the code and mend what lint can mend
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: .venv/.installed ## measure throughput against the emulator
	@.venv/bin/python -m tests.bench

simulate: .venv/.installed ## nights at the quotas in simulated time, written to docs/pace.md: a minute
	@.venv/bin/python -m tests.simulate

faults: .venv/.installed ## every crash, many seeds, ten times the hostile data: most of an hour
	@.venv/bin/python -m tests.faults $(ARGS)

audit: .audit/bin/pip-audit ## look up known vulnerabilities of the pinned dependencies
	@.audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r constraints.txt

.audit/bin/pip-audit:
	@"$(PYTHON)" -m venv .audit && .audit/bin/python -m pip install -qq 'pip-audit==2.10.1'

clean: ## remove .venv, the demo's files, caches and build products
	@rm -rf .venv .audit demo .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# All that the tests import is compiled once: each process of a test run would compile it again, five seconds each.
# What is wrong with a test, the run itself says.
.venv/.compiled: .venv/.installed
	@.venv/bin/python -m pytest --collect-only -qq >/dev/null 2>&1 || true
	@touch $@

# The stamp is written last, so a set-up that was interrupted starts over.
.venv/.installed: pyproject.toml constraints.txt
	@set -eu; \
	base=$$("$(PYTHON)" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null) || { \
	    echo 'batchrun needs Python 3.11 or newer, and "$(PYTHON)" does not run here.' >&2; \
	    echo 'Install one, or name the one to use: make test PYTHON=/path/to/python3.12' >&2; exit 1; }; \
	"$$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "batchrun needs Python 3.11 or newer, and \"$(PYTHON)\" is $$("$$base" --version 2>&1)." >&2; \
	    echo 'Install one, or name the one to use: make test PYTHON=/path/to/python3.12' >&2; exit 1; }; \
	uv=$$(command -v uv || true); \
	if [ -e $@ ] && { [ -n "$$uv" ] || [ -x .venv/bin/pip ]; }; \
	    then what='is out of date'; else what='is new'; rm -rf .venv; fi; \
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	printf '.venv %s: installing … ' "$$what"; began=$$(date +%s); \
	{ if [ -n "$$uv" ]; then \
	    { [ -e .venv ] || uv venv --python "$$base" .venv; } && \
	    uv pip install --python .venv/bin/python -c constraints.txt -e '.[fast,test,contract]'; \
	else \
	    { [ -e .venv ] || "$$base" -m venv .venv; } && \
	    .venv/bin/python -m pip install --no-compile -c constraints.txt -e '.[fast,test,contract]'; \
	fi; } >"$$log" 2>&1 || { echo 'failed:'; cat "$$log"; exit 1; }; \
	echo "done in $$(( $$(date +%s) - began )) s"; \
	touch $@
