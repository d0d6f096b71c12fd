//! Generates the messages; `protox` reads the definitions, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "infranetes/agent/v1/agent.proto";
    println!("cargo::rerun-if-changed=proto/{file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
