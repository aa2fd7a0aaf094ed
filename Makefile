# make help lists the targets. Everything but THIRD-PARTY.txt is built into target/ and .venv; nothing outside of the
# checkout changes, but for Debian packages that tests need, which `make test` installs where it may.

.DEFAULT_GOAL := help
.PHONY: help lib man install uninstall dist deb wheel sdist header abi-dump doc site figures serve lint soak clean
.PHONY: test test-rust test-python test-others test-documents test-packages test-newest-django test-examples
.PHONY: bench bench-decide bench-run bench-slow bench-stall bench-python bench-fastcgi bench-peers
.PHONY: setup-system setup-python setup-dev

CARGO ?= cargo
PYTHON_RUN = .venv/bin/python
# What pytest needs to see of the checkout is passed by path: the package itself comes from the installed wheel.
# -rfEs: names what has failed, and says why something was skipped.
PYTEST = $(PYTHON_RUN) -m pytest -p no:cacheprovider -q -rfEs

VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml)
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man

DIR ?= .
BIND ?= 127.0.0.1
PORT ?= 8000

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "examples         build examples/*.c into target/examples"

lib: ## the shared and the static library, in target/release
	$(CARGO) build --release --lib --locked
	ln -sf libsendgate.so $(TARGET_DIR)/release/libsendgate.so.0

man: ## the manual pages, in target/man
	@python3 scripts/manpages.py $(TARGET_DIR)/man

install: lib man ## library, header, pkg-config and CMake files, manual pages (make install PREFIX=/usr/local DESTDIR=...)
	@VERSION=$(VERSION) PREFIX='$(PREFIX)' LIBDIR='$(LIBDIR)' INCLUDEDIR='$(INCLUDEDIR)' MANDIR='$(MANDIR)' DESTDIR='$(DESTDIR)' \
		BUILT=$(TARGET_DIR)/release MAN=$(TARGET_DIR)/man sh scripts/install.sh

uninstall: ## what install has installed, with the same PREFIX and DESTDIR
	rm -f '$(DESTDIR)$(INCLUDEDIR)'/sendgate.h '$(DESTDIR)$(LIBDIR)'/libsendgate.a '$(DESTDIR)$(LIBDIR)'/libsendgate.so* \
		'$(DESTDIR)$(LIBDIR)'/pkgconfig/sendgate.pc '$(DESTDIR)$(MANDIR)'/man3/sendgate_*.3 '$(DESTDIR)$(MANDIR)'/man7/sendgate.7
	rm -rf '$(DESTDIR)$(LIBDIR)'/cmake/sendgate

dist: ## the sources of this commit, in target/sendgate-VERSION.tar.gz
	@mkdir -p $(TARGET_DIR)
	git archive --format=tar.gz --prefix=sendgate-$(VERSION)/ -o $(TARGET_DIR)/sendgate-$(VERSION).tar.gz HEAD
	@echo $(TARGET_DIR)/sendgate-$(VERSION).tar.gz

wheel: ## the Python package for every Linux with glibc 2.17 or later, in target/dist
	@sh scripts/package-python.sh wheel

sdist: ## the Python package's sources for pip, in target/dist
	@sh scripts/package-python.sh sdist

deb: ## packages for the Debian that this runs on: libsendgate0 and libsendgate-dev, in target/deb
	@sh scripts/deb.sh

serve: setup-python ## serve DIR on BIND:PORT (make serve DIR=/usr/share/doc PORT=8001)
	@$(PYTHON_RUN) -m sendgate "$(DIR)" --bind "$(BIND)" --port "$(PORT)"

# Most of the time the last two wait for something, so they run side by side; each prints when it has ended.
test: ## install what the tests need, and run all of them
	$(MAKE) --no-print-directory setup-system
	$(MAKE) --no-print-directory setup-dev test-rust
	$(MAKE) --no-print-directory --jobs=2 --output-sync test-python test-others

test-others:
	$(MAKE) --no-print-directory test-examples
	$(MAKE) --no-print-directory test-documents
	$(MAKE) --no-print-directory test-packages
	$(MAKE) --no-print-directory test-newest-django

test-rust: ## Rust, the C programs (plain, sanitized, under Valgrind) and the ABI
	$(CARGO) test --locked

test-examples: examples setup-dev ## the C examples over real sockets
	$(PYTEST) tests/test_examples.py tests/test_fastcgi_example.py tests/test_hosts.py tests/test_hosts_fastcgi.py \
		tests/test_ffi.py

test-python: setup-dev ## the installed wheel, on all the servers and frameworks that it is for
	$(PYTEST) bindings/python/tests

test-documents: setup-dev ## the comparison with nginx, the documents' examples, the documentation site
	$(PYTEST) tests/differential tests/test_readme.py tests/test_docs.py tests/test_docs_site.py

test-packages: setup-dev ## make install, the wheel, the sdist, the Debian packages
	$(PYTEST) tests/test_install.py tests/test_packages.py tests/test_debian.py

test-newest-django: setup-dev ## Django's tests on the newest Django, if there is a Python for it
	@sh scripts/test-newest-django.sh

lint: setup-dev ## rustfmt, clippy, ruff, mypy
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	.venv/bin/ruff check bindings/python tests bench scripts docs/conf.py
	.venv/bin/ruff format --check bindings/python tests bench scripts docs/conf.py
	cd bindings/python && ../../.venv/bin/mypy

header: ## make include/sendgate.h anew from src/ffi
	SENDGATE_WRITE_HEADER=1 $(CARGO) test --locked --test abi header_is_current

abi-dump: ## enter this version into tests/abi, for later ones to be compared with: once for each release
	SENDGATE_WRITE_ABI=1 $(CARGO) test --locked --test abi abidiff

doc: ## the Rust documentation, in target/doc
	$(CARGO) doc --no-deps --locked

site: setup-dev ## the documentation site, in target/site
	@rm -rf $(TARGET_DIR)/site
	@$(PYTHON_RUN) -m sphinx -q -E -n -W --keep-going -c docs -d $(TARGET_DIR)/site-cache . $(TARGET_DIR)/site
	@echo $(TARGET_DIR)/site/index.html

figures: ## copy the recorded figures of the benchmarks into docs/performance.md, and draw them
	@python3 scripts/figures.py

bench: examples bench-decide bench-python bench-fastcgi ## all benchmarks, an hour; needs root for its own network namespace
	python3 bench/run.py
	python3 bench/slow.py
	python3 bench/stall.py

bench-run: examples ## the C example against a floor, nginx and Go: CPU time per request
	python3 bench/run.py

bench-slow: examples bench-peers ## ten thousand clients that ask and don't read: memory, CPU, what the others notice
	python3 bench/slow.py

bench-stall: bench-peers ## how long a hundred downloads hold up an asyncio event loop
	python3 bench/stall.py

bench-python: bench-peers ## file servers in Python: CPU time per request beside hello-world's
	python3 bench/python.py
	python3 bench/python.py --interface asgi
	python3 bench/python.py --interface rsgi

bench-fastcgi: examples bench-peers ## FastCGI responders, alone and behind nginx: CPU time per request
	python3 bench/fastcgi.py

bench-peers: setup-python
	@sh bench/setup-peers.sh

bench-decide: ## the micro-benchmark of decide plus head
	$(CARGO) bench --locked --bench decide -- --quick

soak: setup-dev ## the properties with a hundred times as many cases, 4 million random requests, 10 minutes of fuzzing: 20 minutes
	PROPTEST_CASES=25600 $(CARGO) test --locked --release --lib
	SENDGATE_ORACLE_REQUESTS=4000000 $(PYTEST) bindings/python/tests/test_oracle.py
	sh scripts/fuzz.sh fastcgi 600

clean: ## remove what was built
	rm -rf target .venv THIRD-PARTY.txt

setup-system:
	@sh scripts/setup-system.sh

setup-python:
	@sh scripts/setup-python.sh

setup-dev:
	@sh scripts/setup-python.sh --dev

include examples/examples.mk
