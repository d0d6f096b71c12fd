//! Builds, runs and checks infranetes: cargo xtask help.

fn main() {}
