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
    println!("cargo::rustc-env=INFRANETES_SDK_RUSTC={}", rustc_version()?);
    println!("cargo::rustc-env=INFRANETES_SDK_TARGET={}", std::env::var("TARGET")?);
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}

/// "1.95.0", or whatever the compiler says about itself.
fn rustc_version() -> Result<String, Box<dyn std::error::Error>> {
    let output = std::process::Command::new(std::env::var("RUSTC")?).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').nth(1).unwrap_or("unknown").trim().to_owned())
}
