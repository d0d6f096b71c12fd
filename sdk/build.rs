//! Generates the messages; `protox` reads the definitions, so no `protoc` is needed.

/// Messages that may carry secrets: their `Debug` is written by hand, see `src/redact.rs`.
const SECRET: [&str; 6] = [
    ".infranetes.provider.v1.CreateRequest",
    ".infranetes.provider.v1.EnvVar",
    ".infranetes.provider.v1.PullRequest",
    ".infranetes.provider.v1.SecretResponse",
    ".infranetes.provider.v1.StartRequest",
    ".infranetes.provider.v1.ExecStart",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["plugin", "pod", "container", "volume"]
        .map(|name| format!("infranetes/provider/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
