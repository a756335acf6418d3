# One set of words for people and CI. `make` alone explains them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
LINKS := $(VENV)/links
FOLDERS := cache gateway workers loadtests
PYTHON_FILES := $(FOLDERS) tests
# Debian packages: command or file that shows one is there = package. Tests need the first list, benches both.
# Debian starts what it installs, and Prometheus on the admin port's 9090: that one is stopped again.
TEST_TOOLS := redis-server=redis-server promtool=prometheus /usr/sbin/nghttpx=nghttp2-proxy /usr/sbin/haproxy=haproxy \
	h2load=nghttp2-client wrk=wrk hey=hey ab=apache2-utils \
	/usr/bin/docker-compose=docker-compose /usr/bin/systemd-analyze=systemd
TOOLS := /usr/sbin/nginx=nginx /usr/share/nginx/modules-available/mod-http-echo.conf=libnginx-mod-http-echo

# $(call get,LIST,WORDS,STATUS): install what of the list is not there; where that cannot be done, say so and end so
define get
@missing=; for t in $(1); do \
		command -v "$${t%%=*}" >/dev/null || [ -e "$${t%%=*}" ] || missing="$$missing $${t##*=}"; done; \
	[ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing && \
		case "$$missing" in *prometheus*) [ ! -d /run/systemd/system ] || \
			systemctl -q disable --now prometheus;; esac; } || \
	{ echo "not installed:$$missing; $(2)" >&2; exit $(3); }
endef

.PHONY: help install tools test-tools run test check lint test-deep test-vllm chaos soak bench bench-scale hitratio docs clean
.DEFAULT_GOAL := help

help:
	@echo "make install      .venv with Penstock and what its tests need; every word but clean does it first"
	@echo "make run          start Penstock (CONFIG=file.yaml; without one, in front of two simulators)"
	@echo "make test         make check, then the tests that need no special machine"
	@echo "make check        make lint, and the packaging tests"
	@echo "make lint         format, lint, types, layers"
	@echo "make test-deep    property tests with 20,000 examples each"
	@echo "make test-vllm    the suite against a real vLLM server"
	@echo "make chaos        kills and restarts under load, several rounds"
	@echo "make soak         a long run that watches memory and counts"
	@echo "make bench        throughput and latency against bare Granian; prints a table"
	@echo "make bench-scale  the same over 1..N workers"
	@echo "make hitratio     what L1 hits beside LRU, S3-FIFO, SIEVE and the optimum; a table and a plot"
	@echo "make tools        Debian packages that the tests and benches use"
	@echo "make docs         write anew what is made from the code: references, rules, dashboards"
	@echo "make clean        remove build output and caches; .venv stays"

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv; \
		else echo "python3-venv is needed: apt install python3-venv" >&2; exit 1; fi; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock setuptools
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock --no-build-isolation -e '.[dev]'
	@rm -rf $(LINKS) && mkdir -p $(LINKS)/penstock
	@for f in $(FOLDERS); do ln -s "$(CURDIR)/$$f" $(LINKS)/penstock/$$f; done
	@touch $@

tools: install
	$(call get,$(TEST_TOOLS) $(TOOLS),what needs them is skipped,0)

test-tools: install
	$(call get,$(TEST_TOOLS),the tests need it: apt install$$missing,1)

run: install
	@exec $(BIN)/penstock serve $(if $(CONFIG),-c $(CONFIG)) $(ARGS)

test: check test-tools
	$(PYTEST) --ignore=tests/packaging -n 3 --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	MYPYPATH=$(LINKS) $(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint
	$(PYTEST) tests/packaging

test-deep: install
	HYPOTHESIS_PROFILE=deep $(PYTEST) -o timeout=7200 tests/unit tests/integration tests/conformance tests/conformance_cache $(ARGS)

test-vllm: install
	$(BIN)/python -m tests.vllm.run $(ARGS)

chaos: test-tools
	$(PYTEST) -o timeout=1800 -m "not (vllm or soak)" tests/chaos $(ARGS)

soak: install
	$(PYTEST) -o timeout=14400 -m soak tests $(ARGS)

bench: tools
	$(BIN)/python -m penstock.loadtests.bench $(ARGS)

bench-scale: tools
	$(BIN)/python -m penstock.loadtests.bench --scale $(ARGS)

hitratio: install
	$(BIN)/python -m penstock.loadtests.hitratio $(ARGS)

docs: install
	$(BIN)/penstock config schema > config.schema.json
	$(BIN)/python -m penstock.gateway.config.reference > docs/configuration.md
	$(BIN)/python -m penstock.workers.monitoring .

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .import_linter_cache
	find $(PYTHON_FILES) -name __pycache__ -type d -prune -exec rm -rf {} +
