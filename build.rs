//! Gives the shared library its SONAME: `libsendgate.so.0`, the number that ABI breaks change.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let linux_like = std::env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|f| f.contains("unix"))
        && !std::env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|v| v == "apple");
    if linux_like {
        let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsendgate.so.{major}");
    }
}
