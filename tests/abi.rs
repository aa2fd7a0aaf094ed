//! The C ABI as other programs see it: the committed header is current.

use std::path::Path;

/// `include/sendgate.h` is what cbindgen makes of `src/ffi`. `make header` sets SENDGATE_WRITE_HEADER to write it.
#[test]
fn header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let bindings = cbindgen::Builder::new()
        .with_crate(root)
        .with_config(config)
        .generate()
        .expect("cbindgen reads src/ffi");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");
    let path = root.join("include/sendgate.h");
    if std::env::var_os("SENDGATE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("write include/sendgate.h");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "include/sendgate.h is out of date: run `make header`");
}
