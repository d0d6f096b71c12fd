//! Every call of `calls.rs` once more, with each plugin in a process of its own.

#[path = "calls.rs"]
mod calls;
