//! Runs the containers of a pod in its machine, for infranetes.

fn main() {}
