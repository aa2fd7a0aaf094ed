//! The C ABI.
#![allow(missing_docs, unused)]
pub mod types;
pub mod status;
pub mod decide;
pub mod send;
pub mod simple;
