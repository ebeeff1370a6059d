# The commands of this project. `make help` lists them. `check` never edits a file, `fix` does.

# RocksDB takes ten minutes to compile. Outside the checkout, all clones of this user share it.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/drover/target
CARGO := cargo
DROVER := $(CARGO_TARGET_DIR)/debug/drover
CHAOS := $(CARGO_TARGET_DIR)/debug/chaos
# Real processes share two cores in the end-to-end tests: side by side they would measure each other.
E2E_THREADS ?= 2
# Every kind of fault within four minutes; a machine that cannot do some says which it leaves out.
FAULTS := --seed 1 --seconds 90
# The power of all nodes is cut while their disks lie about syncs.
LIES := --seed 1 --seconds 12 --nemesis power-all --lying-disks
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run dev build test unit clients e2e chaos faults faults-proof soak sim sim-mutants bench check fix doc

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: ## install what building needs (libclang)
	@.ci/setup build

# Cargo unites the features of the packages that a command selects. Selecting the whole workspace each time keeps them the
# same, or RocksDB would be compiled again for each selection.
build: setup ## build the programs
	$(CARGO) build --workspace --bins

run: build ## run a hub on this machine: make run ARGS="--demo --nodes 3"
	$(DROVER) dev $(ARGS)

dev: run ## the same

test: ## run all tests, with clients from elsewhere; what CI runs
	@.ci/setup test
	$(CARGO) build --workspace --all-targets
	$(CARGO) test --workspace --lib --bins
	$(CARGO) test --workspace --test tidy
	$(CARGO) test --workspace --test simulation -- --test-threads 1 --nocapture
	$(CARGO) test --workspace --test e2e -- --test-threads $(E2E_THREADS)
	$(CHAOS) kill --seconds 60
	$(CHAOS) run $(FAULTS)
	$(CHAOS) run $(LIES)

unit: setup ## run the tests beside the code
	$(CARGO) test --workspace --lib --bins

e2e: ## run the tests of whole processes: make e2e ARGS=failover
	@.ci/setup test
	$(CARGO) build --workspace --all-targets
	$(CARGO) test --workspace --test e2e -- --test-threads $(E2E_THREADS) $(ARGS)

sim: build ## run the simulation: make sim ARGS="--seeds 100"
	$(CHAOS) sim $(ARGS)

sim-mutants: build ## plant fifteen mistakes, one after the other: the simulation must find each
	$(CHAOS) sim --mutant ack-before-commit
	$(CHAOS) sim --mutant no-epoch-check
	$(CHAOS) sim --mutant applied-index-outside-batch
	$(CHAOS) sim --mutant completed-again
	$(CHAOS) sim --mutant superseded-stays
	$(CHAOS) sim --mutant expires-twice
	$(CHAOS) sim --mutant commit-before-fsync
	$(CHAOS) sim --mutant read-without-barrier
	$(CHAOS) sim --mutant local-clock
	$(CHAOS) sim --mutant hash-order
	$(CHAOS) sim --mutant snapshot-without-mailbox
	$(CHAOS) sim --mutant epoch-in-memory
	$(CHAOS) sim --mutant node-id-reused
	$(CHAOS) sim --mutant access-by-prefix
	$(CHAOS) sim --mutant iterator-status-ignored

chaos: build ## kill nodes of a real cluster and check the promises: make chaos ARGS="--minutes 10"
	$(CHAOS) kill $(ARGS)

faults: build ## cut networks, disks and power of a real cluster once each and check the promises
	@.ci/setup test
	$(CHAOS) run $(FAULTS) $(ARGS)

faults-proof: build ## let disks lie about syncs: acknowledged messages must then be found to be lost
	@.ci/setup test
	$(CHAOS) run $(LIES)

soak: build ## cut networks, disks and power of a real cluster, seed after seed, until stopped or something breaks
	@.ci/setup test
	$(CHAOS) run --until-stopped --minutes 10 --report $(CARGO_TARGET_DIR)/soak $(ARGS)

bench: build ## measure everything beside mosquitto, NATS and etcd, print one table of ratios
	@.ci/setup bench
	$(CHAOS) bench $(ARGS)

check: setup ## formatting, lints, layers, licences; edits nothing
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	$(CARGO) test --quiet --workspace --test tidy
	@.ci/deny

fix: setup ## format, and apply what clippy can apply
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

doc: setup ## build the pages of the code
	$(CARGO) doc --workspace --no-deps --document-private-items
