//! Cases that span the crates of infranetes, and their harness.
