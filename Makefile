# The commands of this project. `make help` lists them. `check` never edits a file, `fix` does.

# RocksDB takes ten minutes to compile. Outside the checkout, all clones of this user share it.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/drover/target
CARGO := cargo
DROVER := $(CARGO_TARGET_DIR)/debug/drover
# Real processes share two cores in the end-to-end tests: side by side they would measure each other.
E2E_THREADS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run dev build test unit clients e2e chaos sim bench check fix doc

help: ## list the commands
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: ## install what building needs (libclang)
	@.ci/setup build

build: setup ## build the program
	$(CARGO) build -p drover-node -p drover-chaos

run: setup ## run a hub on this machine: make run ARGS="--demo --nodes 3"
	$(CARGO) run --quiet -p drover-node --bin drover -- dev $(ARGS)

dev: run ## the same

test: ## run all tests, with clients from elsewhere; what CI runs
	@.ci/setup test
	$(CARGO) build -p drover-node -p drover-chaos
	$(CARGO) test --workspace --exclude drover-tests
	$(CARGO) test -p drover-tests -- --test-threads $(E2E_THREADS)
	$(CARGO) run -p drover-chaos --bin chaos -- kill --seconds 60

unit: setup ## run the tests beside the code
	$(CARGO) test --workspace --exclude drover-tests

e2e: ## run the tests of whole processes: make e2e ARGS=failover
	@.ci/setup test
	$(CARGO) build -p drover-node -p drover-chaos
	$(CARGO) test -p drover-tests --test e2e -- --test-threads $(E2E_THREADS) $(ARGS)

sim: setup ## run the simulation: make sim ARGS="--seeds 100"
	$(CARGO) run -p drover-chaos --bin chaos -- sim $(ARGS)

chaos: build ## kill nodes of a real cluster and check the promises: make chaos ARGS="--minutes 10"
	$(CARGO) run -p drover-chaos --bin chaos -- kill $(ARGS)

bench: build ## measure everything beside mosquitto, NATS and etcd, print one table of ratios
	@.ci/setup bench
	$(CARGO) run -p drover-chaos --bin chaos -- bench $(ARGS)

check: setup ## formatting, lints, layers, licences; edits nothing
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	$(CARGO) test --quiet -p drover-tests --test tidy
	@.ci/deny

fix: setup ## format, and apply what clippy can apply
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

doc: setup ## build the pages of the code
	$(CARGO) doc --workspace --no-deps --document-private-items
