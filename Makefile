# Two commands on a fresh machine: `make demo` shows a result, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
# Every program starts many Python processes, which would compile all of their modules again each time: measured, an
# ingest of three small clips then takes 39 s of wall time instead of 14.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-train test test-long extras docs clean

# What each of them needs to be installed.
EXTRAS_demo := ingest
EXTRAS_demo-train := ingest,train
EXTRAS_dev := dev
EXTRAS_docs := docs

demo: .venv/demo
	$(BIN)/vdot-data weights
	$(BIN)/python -m pipeline.cli.demo demo

# From the shards of the demonstration to a tiny student, and a video that it makes in four steps.
demo-train: demo .venv/demo-train
	$(BIN)/python -m training.demo demo

test: .venv/dev
	$(BIN)/vdot-data weights
	$(BIN)/vdot-bench clips
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -m "not long" -rs -n 2 --dist loadfile --no-loadscope-reorder

# What takes too long for every day: real clips end to end, S3 that fails one call in ten, a full disk, looser rules.
test-long: .venv/dev
	$(BIN)/vdot-data weights
	$(BIN)/vdot-bench clips
	$(BIN)/pytest -m long -rs -n 2 --dist loadfile --no-loadscope-reorder

# The bare core and each extra in an environment of its own: every module it owns, and a command of each program.
extras: .venv/dev
	$(BIN)/python tests/extras/matrix.py

# The site of docs/, in site/. Any warning is an error. The variable silences a notice of the theme.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A stamp per set of extras: an install is done again when the metadata or the tested versions change. Python compiles
# what it imports and keeps that; compiling all of it ahead takes as long as installing it.
.venv/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS_$*)]'
	touch $@

clean:
	rm -rf .venv demo site
