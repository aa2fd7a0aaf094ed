//! sendgate
pub mod ffi;
