//! Tests that look inside: formats, the log's contracts, openraft's suite. What a user sees is tested from outside.

mod codec;
mod log;
mod suite;
