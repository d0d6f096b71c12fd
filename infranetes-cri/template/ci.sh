#!/bin/sh
# What has to pass before a change lands; CI runs the same.
set -eu
cd "$(dirname "$0")"
cargo fmt --check
cargo clippy --all-targets -- -D warnings
cargo test
cargo build
if command -v infranetes-cri >/dev/null; then
    infranetes-cri plugin check "${CARGO_TARGET_DIR:-target}/debug/lib@CRATE@.so" --config @NAME@.toml
else
    echo "infranetes-cri is not installed: the built plugin was not loaded" >&2
fi
