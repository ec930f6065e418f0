# `make help` lists what there is to do.

PREFIX ?= /usr
SYSCONFDIR ?= /etc
DESTDIR ?=
PROFILE ?= release
CARGO ?= cargo
# Where cargo put the binaries that `install` takes.
BINDIR ?= $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

.DEFAULT_GOAL := help
.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: ## install what BINDIR has (DESTDIR=, PREFIX=/usr); then run packaging/postinst.sh
	@packaging/install.sh "$(BINDIR)" "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)"
