# Every task is a command here, for people and for CI. `make` alone lists the commands.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# The interpreter, if not the first one on the PATH that fits: make PYTHON=python3.13 …
PYTHON ?=
export PYTHON

# Tests wait more than they compute: more of them at a time than there are processors.
WORKERS ?= 4
NO_TESTS := 5
# A module's tests run in one process, which makes its fixtures once. In alphabetical order the long ones come early.
BY_MODULE := --dist loadscope --no-loadscope-reorder

BIN := .venv/bin
READY := .venv/ready
QUIET := --quiet --quiet

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- The two main commands ----

.PHONY: demo
demo: $(READY) ## run simulated servers, the exporter, Prometheus and Alertmanager; Ctrl-C stops all
	@exec $(BIN)/tgi-probe demo $(ARGS)

.PHONY: test
test: real-parts format-check lint types contracts proto-check dashboards-check unit ## every check of CI except slow and wheel-check

# ---- Set-up ----

.PHONY: venv
venv: $(READY) ## make .venv with everything locked in requirements/dev.txt

$(READY): .venv/locked .venv/peers/ready pyproject.toml
	@$(BIN)/pip install $(QUIET) --no-deps --no-build-isolation --no-index --editable .
	@touch $@

.venv/locked: requirements/dev.txt
	@set -e; python=$$(scripts/python); \
	echo "setting up .venv with $$($$python --version) (about a minute, once)"; \
	$$python -m venv --clear .venv; \
	$(BIN)/pip install $(QUIET) --require-hashes -r requirements/dev.txt
	@touch $@

# Other implementations of our protocols, to test against their generated code. Installed without their dependencies,
# which include a whole inference server.
.venv/peers/ready: requirements/peers.txt .venv/locked
	@$(BIN)/pip install $(QUIET) --no-deps --require-hashes --upgrade --target .venv/peers -r requirements/peers.txt
	@touch $@

.PHONY: real-parts
real-parts: ## install Prometheus and Alertmanager for the tests (Debian, as root)
	@scripts/real-parts

# ---- Single checks ----

.PHONY: format
format: $(READY) ## rewrite the code in the one format
	$(BIN)/ruff check --quiet --select I --fix .
	$(BIN)/ruff format .

.PHONY: format-check
format-check: $(READY)
	$(BIN)/ruff format --check .

.PHONY: lint
lint: $(READY) ## look for likely bugs
	$(BIN)/ruff check .

.PHONY: types
types: $(READY) ## check the types
	$(BIN)/mypy

.PHONY: contracts
contracts: $(READY) ## check that imports point downward
	$(BIN)/lint-imports --no-logo

.PHONY: proto-check
proto-check: $(READY)
	$(BIN)/python proto/generate.py --check

.PHONY: dashboards-check
dashboards-check: $(READY)
	$(BIN)/python -m grafana.generate --check

.PHONY: unit
unit: $(READY) ## run the tests; ARGS="-k schedule" picks some
	$(BIN)/pytest --numprocesses $(WORKERS) $(BY_MODULE) -m "not alone and not slow and not faults" $(ARGS) || [ $$? = $(NO_TESTS) ]
	nice -n -20 $(BIN)/pytest -m alone $(ARGS) || [ $$? = $(NO_TESTS) ]

.PHONY: slow
slow: real-parts $(READY) ## run the tests that take long by themselves: rules over days, a real Alertmanager, the image, faults
	$(BIN)/pytest --numprocesses $(WORKERS) $(BY_MODULE) -m slow $(ARGS) || [ $$? = $(NO_TESTS) ]

.PHONY: faults
faults: $(READY) ## break servers, daemon and network on purpose, and write docs/reliability.md; ARGS="--seed 17" replays
	@rm -f .faults.jsonl
	FAULTS_RESULTS=$(CURDIR)/.faults.jsonl $(BIN)/pytest --numprocesses $(WORKERS) $(BY_MODULE) -o faulthandler_timeout=3600 -m "faults or slow" tests/faults $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.faults.report .faults.jsonl)

# ---- Generated files, which are committed ----

.PHONY: proto
proto: $(READY) ## generate exporter/pb from proto/
	$(BIN)/python proto/generate.py

.PHONY: docs
docs: $(READY) ## write docs/configuration.md and docs/metrics.md from the code
	$(BIN)/python -m docs.generate

.PHONY: dashboards
dashboards: $(READY) ## generate the Grafana dashboards
	$(BIN)/python -m grafana.generate

# Labels that change with every pod must not split an error budget. The sidecar has no file: these are the variables of
# its deployment.yaml.
PODS := --format k8s --drop-label pod --drop-label instance --drop-label container
SIDECAR := TGI_PROBE_TARGET=unix:///run/tgi/shard-0 TGI_PROBE_BATCH_SIZES=1,2,4,8 TGI_PROBE_SEQUENCE_LENGTH=512 \
	TGI_PROBE_DECODE_LENGTH=32 TGI_PROBE_INTERVAL=30s TGI_PROBE_TTFT_SLO=200ms TGI_PROBE_TTFT_OBJECTIVE=0.99
.PHONY: rules
rules: $(READY) ## write the rules under deploy/ from the configurations beside them
	$(BIN)/tgi-probe rules --config deploy/prometheus/tgi-probe.yaml > deploy/prometheus/tgi-probe.rules.yml
	$(BIN)/tgi-probe rules --config deploy/compose/tgi-probe.yaml > deploy/compose/tgi-probe.rules.yml
	$(BIN)/tgi-probe rules --config deploy/kubernetes/standalone/tgi-probe.yaml $(PODS) > deploy/kubernetes/monitoring/prometheusrule.yaml
	$(SIDECAR) $(BIN)/tgi-probe rules $(PODS) > deploy/kubernetes/monitoring/prometheusrule-sidecar.yaml

.PHONY: lock
lock: ## write requirements/*.txt from pyproject.toml; ARGS=--upgrade takes the newest releases
	scripts/lock $(ARGS)

.PHONY: audit
audit: ## ask PyPI for known vulnerabilities of the locked releases (needs the network; CI has none)
	scripts/audit $(ARGS)

# ---- Releases and measurements ----

.PHONY: wheel
wheel: $(READY) ## build the wheel and the source archive into dist/
	@rm -rf dist
	$(BIN)/hatchling build

.PHONY: wheel-check
wheel-check: wheel ## install the wheel in a clean environment and run it
	@scripts/wheel-check $(BIN)/python dist/*.whl

.PHONY: load-tools
load-tools: ## install two public load tools for `make bench ARGS=streams`, in environments of their own
	@scripts/load-tools

.PHONY: bench
bench: $(READY) ## measure the exporter itself and write benchmarks/RESULTS.md (10 minutes; ARGS="company" for one part)
	$(BIN)/python -m benchmarks $(or $(ARGS),--seconds 60 --write benchmarks/RESULTS.md)

.PHONY: soak
soak: $(READY) ## make four million calls, look what grows, and write benchmarks/SOAK.md (17 minutes)
	$(BIN)/python -m benchmarks soak --calls 4000000 --write benchmarks/SOAK.md $(ARGS)

.PHONY: clean
clean: ## remove everything that make has made
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
