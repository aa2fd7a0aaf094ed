//! Answers an HTTP request with a file: conditions, ranges, sendfile.
pub mod ffi;
pub mod http;
