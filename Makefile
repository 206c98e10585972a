# Everything a person types. `make help` lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := -q --disable-pip-version-check --no-compile
ARGS   ?=
export PYTHONPATH := $(CURDIR)
# A test run starts hundreds of processes: what one has compiled the next one reads.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run demo samples test check bench golden lock fuzz clean
.PHONY: style types rings pages suite prepared

help:
	@echo 'make setup    install what is missing and build the review page'
	@echo 'make demo     start a node, send studies through it, show what came out'
	@echo 'make run      start a node and wait for studies'
	@echo 'make test     all tests; says what it skipped and why'
	@echo 'make check    style, types and rings'
	@echo 'make bench    how fast, beside other programs found on this machine'
	@echo 'make samples  download the BrEaST images (CC BY 4.0) for the demo'
	@echo 'make golden   write the golden files anew; look at the diff'
	@echo 'make lock     choose versions anew'

$(VENV)/.runtime: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("sononode needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) -r requirements.lock
	touch $@

# A node may run under an account that cannot write here; tests compile what they use.
$(VENV)/.compiled: $(VENV)/.runtime
	@# Some packages carry templates that are no Python: those are left as they are.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

$(VENV)/.test: requirements-test.lock $(VENV)/.runtime
	$(BIN)/python -m pip install $(PIP) -r requirements-test.lock
	touch $@

UI_SOURCES := $(shell find review_ui/src review_ui/*.html review_ui/*.ts review_ui/*.json -type f 2>/dev/null)

review_ui/node_modules/.installed: review_ui/package-lock.json
	cd review_ui && npm ci --no-audit --no-fund --loglevel=error
	touch $@

review_ui/dist/index.html: review_ui/node_modules/.installed $(UI_SOURCES)
	cd review_ui && npm run --silent build
	touch $@

wechat/miniprogram/node_modules/.installed: wechat/miniprogram/package-lock.json
	cd wechat/miniprogram && npm ci --no-audit --no-fund --loglevel=error
	touch $@

tests/fhir/validators/node_modules/.installed: tests/fhir/validators/package-lock.json
	cd tests/fhir/validators && npm ci --no-audit --no-fund --loglevel=error
	touch $@

PHONE_SOURCES := $(shell find wechat/miniprogram/src wechat/miniprogram/harness -type f 2>/dev/null)

wechat/miniprogram/dist/index.html: wechat/miniprogram/node_modules/.installed $(PHONE_SOURCES)
	cd wechat/miniprogram && npm run --silent build:web
	touch $@

setup: $(VENV)/.compiled review_ui/dist/index.html

run: setup
	$(BIN)/python -m node serve $(ARGS)

demo: setup
	$(BIN)/python -m node demo $(ARGS)

samples: $(VENV)/.runtime
	$(BIN)/python -m node samples $(ARGS)

check: style types rings pages

style: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

rings: $(VENV)/.test
	$(BIN)/lint-imports

pages: review_ui/node_modules/.installed wechat/miniprogram/node_modules/.installed
	cd review_ui && npm run --silent check
	cd wechat/miniprogram && npm run --silent check

PAGES_BUILT := review_ui/dist/index.html wechat/miniprogram/dist/index.html
prepared: style rings pages $(PAGES_BUILT) tests/fhir/validators/node_modules/.installed
	cd review_ui && npm test --silent
	cd wechat/miniprogram && npm test --silent

# Two at a time: the first tests wait for processes more than they compute.
test:
	$(MAKE) --no-print-directory -j 2 prepared
	$(MAKE) --no-print-directory -j 2 types suite

# A file stays in one process, so that what its tests share is started once.
# A process that dies ends the run: the scheduler waits for ever for its successor.
suite:
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

bench: setup $(VENV)/.test
	$(BIN)/python -m bench $(ARGS)

golden: $(VENV)/.test
	SONONODE_GOLDEN=write $(BIN)/python -m pytest -q tests/golden $(ARGS)

fuzz: $(VENV)/.test
	SONONODE_FUZZ=100000 $(BIN)/python -m pytest -q -k fuzz $(ARGS)

# The lock files name versions, never addresses.
lock:
	uv pip compile pyproject.toml -q --python-version 3.11 --no-annotate --no-header -o requirements.lock
	uv pip compile pyproject.toml -q --extra test --python-version 3.11 --no-annotate --no-header -o requirements-test.lock

clean:
	rm -rf $(VENV) review_ui/node_modules review_ui/dist wechat/miniprogram/node_modules \
		tests/fhir/validators/node_modules ci-output
