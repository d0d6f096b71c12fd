//! The provider that misbehaves on demand, with an allocator of its own that ends the process when it is given memory of another.

#[path = "fixture_trouble.rs"]
mod trouble;

mod tagging;

#[global_allocator]
static ALLOCATOR: tagging::Tagging<0x7461_6767_6564_2121> = tagging::Tagging;
