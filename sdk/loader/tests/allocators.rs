//! Every call of `calls.rs` once more, with a plugin whose allocator ends the process when it is given memory of the host's, and
//! whose memory the host's allocator cannot free.

#[path = "calls.rs"]
mod calls;
