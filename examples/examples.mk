# The C examples, linked with the static library so that the programs run anywhere. Included by the top Makefile;
# alone: make -f examples/examples.mk examples

EXAMPLES = fastcgi fileserver hello offload stream
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
EXAMPLE_CFLAGS ?= -std=c99 -D_GNU_SOURCE -O2 -g -Wall -Wextra -Wpedantic -Wconversion -Werror
# What Rust's standard library needs of the system.
EXAMPLE_LIBS ?= -lpthread -ldl -lm

.PHONY: examples examples-library
examples: $(EXAMPLES:%=$(TARGET_DIR)/examples/%)

# Cargo knows better than make whether the library is up to date; it leaves the file alone if it is.
examples-library:
	cargo build --release --lib --locked

$(TARGET_DIR)/examples/%: examples/%.c examples/site.h include/sendgate.h examples/examples.mk | examples-library
	@mkdir -p $(@D)
	$(CC) $(EXAMPLE_CFLAGS) -Iinclude $< $(TARGET_DIR)/release/libsendgate.a $(EXAMPLE_LIBS) -o $@

# Link again when the library itself has changed.
$(EXAMPLES:%=$(TARGET_DIR)/examples/%): $(TARGET_DIR)/release/libsendgate.a
$(TARGET_DIR)/release/libsendgate.a: examples-library ;
