# On a fresh machine: `make demo` or `make test`. Both set up .venv first; a second run finds it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another release of Ray than the one that constraints.txt pins: make test RAY=<version>. The range
# in pyproject.toml must allow it.
RAY ?=
STAMP := $(VENV)/.ready$(RAY)
PINS := $(VENV)/constraints.txt
PROMETHEUS := $(VENV)/prometheus
CHROMIUM := $(VENV)/chromium
# One thread a process: two OpenMP teams on a small box slow each other down many times over.
export OMP_NUM_THREADS ?= 1

E2E := $(wildcard tests/e2e/test_*.py)
LONGEST := tests/e2e/test_forget.py tests/e2e/test_chaos.py

# Two at once: types are checked while Debian's packages are fetched.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --jobs=2
endif

ifdef PYTEST
TESTS := chosen
else
TESTS := units servers
endif

.PHONY: setup demo test chosen units servers test-slow check structure bench promtool chromium clean

setup: $(STAMP)

# Not compiled: of some 20,000 modules a few thousand are ever imported, and those are compiled then.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.ready*
	sed '$(if $(RAY),s/^ray==.*/ray==$(RAY)/)' constraints.txt > $(PINS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(PINS) --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/lethe demo $(DEMO)

# Every part runs, whether or not one before it failed; those that failed are named at the end.
test: setup
	@failed=; \
	$(MAKE) --no-print-directory --keep-going check chromium || failed=" check"; \
	for part in $(TESTS); do \
		$(MAKE) --no-print-directory $$part || failed="$$failed $$part"; \
	done; \
	test -z "$$failed" || { echo "make test: failed:$$failed"; exit 1; }

chosen: setup
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

units: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadscope --no-loadscope-reorder tests/integration tests/unit

# Two at a time, the longest modules first, so that none runs alone at the end. The servers' tests
# judge what happens within seconds, which a busy machine can't always give two servers at once: a
# module that failed runs again alone, from its beginning, and must pass there.
FAILED := sed -n 's/^ *"\(tests\/e2e\/[a-z_]*\.py\)::.*/\1/p' .pytest_cache/v/cache/lastfailed | sort -u

servers: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(LONGEST) $(filter-out $(LONGEST),$(E2E)) \
	|| { test $$? -eq 1 && $(BIN)/python -m pytest -m "not slow" $$($(FAILED)); }

test-slow: setup promtool
	$(BIN)/python -m pytest -m slow $(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rooms, arrows and circles; fails where there is a circle.
structure: setup
	$(BIN)/python -m tests.structure

# promtool comes with Debian's prometheus package; it is unpacked, not installed, so no root is
# needed. Where there is no apt, have promtool on the PATH or its tests are skipped, saying so.
promtool: setup
	@command -v promtool >/dev/null || test -x $(PROMETHEUS)/usr/bin/promtool || sh deploy/get-promtool.sh $(PROMETHEUS)

# The console is tested in Debian's chromium, unpacked the same way; a browser on the PATH will do.
# After promtool: apt locks its lists.
chromium: promtool
	@command -v chromium >/dev/null || test -x $(CHROMIUM)/usr/lib/chromium/chromium || sh deploy/get-chromium.sh $(CHROMIUM)

bench: setup
	$(BIN)/python benchmarks/swap.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
