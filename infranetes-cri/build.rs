//! Generates the messages of CRI; `protox` reads the definitions, so no `protoc` is needed.

/// Messages that hold a secret: their `Debug` is written by hand in `src/api.rs`.
const SECRET: [&str; 4] = [
    ".runtime.v1.AuthConfig",
    ".runtime.v1.KeyValue",
    ".runtime.v1.WindowsContainerSecurityContext",
    ".runtime.v1.WindowsSandboxSecurityContext",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["runtime/v1/services.proto"], ["proto"])?;
    tonic_prost_build::configure().btree_map(".").skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
