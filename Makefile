# `make help` lists what there is to do.

PREFIX ?= /usr
SYSCONFDIR ?= /etc
DESTDIR ?=
CARGO ?= cargo
# Where cargo put the binaries that `install` takes.
BINDIR ?= $(or $(CARGO_TARGET_DIR),target)/release

.DEFAULT_GOAL := help

.PHONY: help
help: ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the release binaries
	$(CARGO) build --release --locked

.PHONY: binaries
binaries: ## build the release binaries for packages: like build, with the list of their crates in them
	@packaging/build.sh

.PHONY: deb
deb: binaries ## build the Debian package into target/dist
	@mkdir -p target/dist && packaging/deb.sh "$(BINDIR)" target/dist

.PHONY: rpm
rpm: binaries ## build the RPM package into target/dist
	@mkdir -p target/dist && packaging/rpm.sh "$(BINDIR)" target/dist

.PHONY: release
release: ## make a release: VERSION=x.y.z, ARGS=--dry-run|--skip-check; commits and tags, pushes nothing
	@packaging/release.sh $(VERSION) $(ARGS)

.PHONY: prereqs
prereqs: ## install what tests and demo need (Debian packages)
	@tests/host/prereqs.sh

.PHONY: check
check: ## run all checks: format, clippy, every test, on a real host too; lists what was skipped
	@tests/check.sh

.PHONY: coverage
coverage: ## line coverage of the pure layers by unit tests; fails below 90 %
	@tests/coverage.sh

.PHONY: sim
sim: ## the simulation alone: SEEDS=n seeds, or SEED=n for one, replayed line by line
	@tests/sim.sh

.PHONY: fuzz
fuzz: ## bytes that nobody meant, for all parsers: SECONDS=n each (default 60)
	@tests/fuzz.sh $(or $(SECONDS),60)

.PHONY: bench
bench: ## the front door beside nginx and HAProxy, as ratios in one run (docs/performance.md); ARGS= for less
	$(CARGO) build --release --locked -p bench
	"$(or $(CARGO_TARGET_DIR),target)/release/scan"
	"$(or $(CARGO_TARGET_DIR),target)/release/bench" run $(ARGS)
	$(if $(ARGS),,"$(or $(CARGO_TARGET_DIR),target)/release/bench" watched)

.PHONY: soak
soak: ## kills and load for long, on a real host: KILLS=500 API_KILLS=200 MINUTES=30
	KILLS=$(or $(KILLS),500) API_KILLS=$(or $(API_KILLS),200) MINUTES=$(or $(MINUTES),30) \
	  $(CARGO) test --locked --test host -- --include-ignored --test-threads 1 --nocapture soak_ fault_28

.PHONY: demo
demo: ## a real model answers on a real host: builds, boots, asks, shows
	@contrib/demo/demo.sh

.PHONY: demo-stop
demo-stop: ## end the demo and leave nothing running
	@contrib/demo/stop.sh

.PHONY: install
install: ## install what was built (DESTDIR=, PREFIX=/usr, BINDIR=); then run packaging/postinst.sh
	@packaging/install.sh "$(BINDIR)" "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)"

.PHONY: man
man: ## write manual pages and completions of what was built to DIR (default: target/share)
	"$(BINDIR)/hostler" --quiet pages "$(or $(DIR),target/share)"

.PHONY: clean
clean: ## remove what cargo built (the cache outside the tree stays: see CONTRIBUTING.md)
	$(CARGO) clean
