//! Runs the containers of a pod in its machine, for infranetes.

use std::process::ExitCode;

fn main() -> ExitCode {
    infranetes_agent::program::run(infranetes_agent::plugins::open)
}
