//! As `allocators.rs`, in a host that has an allocator of its own, too: neither side may free what the other made.

#[path = "calls.rs"]
mod calls;

#[path = "../examples/tagging/mod.rs"]
mod tagging;

#[global_allocator]
static ALLOCATOR: tagging::Tagging<0x686f_7374_2121_2121> = tagging::Tagging;
