//! Guest images: with the container provider in the agent, as ours is, and with one in a file, as authors of container plugins
//! make them (`cargo xtask guest --plugin FILE.so`).

use anyhow::{Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::container;

#[tokio::test]
async fn the_agent_of_a_guest_loads_its_container_provider_from_a_file() -> Result<()> {
    case::run("qemu", async |case| {
        case.node.boot_from("guest-plugins")?;
        case.restart_hard().await?;
        let (maps, said) = a_container_of_a_guest(case).await?;
        ensure!(maps.contains("/usr/lib/infranetes/plugins/oci.so"), "not loaded:\n{maps}");
        ensure!(said == "it runs\n", "{said:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_agent_of_our_guest_needs_no_shared_library() -> Result<()> {
    case::run("qemu", async |case| {
        let (maps, said) = a_container_of_a_guest(case).await?;
        ensure!(maps.contains("/usr/bin/infranetes-agent"), "another program:\n{maps}");
        ensure!(!maps.contains(".so"), "it loads libraries:\n{maps}");
        ensure!(said == "it runs\n", "{said:?}");
        Ok(())
    })
    .await
}

/// What the machine's first process has mapped, and what a command in a container says.
async fn a_container_of_a_guest(case: &mut Case) -> Result<(String, String)> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("guest");
    let sandbox = client.run_pod(&pod).await?;
    let mut config = container("looker", &case.image, &["sleep", "600"]);
    let options =
        cri::NamespaceOption { pid: cri::NamespaceMode::Node as i32, ..Default::default() };
    config.linux.get_or_insert_default().security_context =
        Some(cri::LinuxContainerSecurityContext {
            namespace_options: Some(options),
            privileged: true,
            ..Default::default()
        });
    let id = client.run_container(&sandbox, &pod, config).await?;
    let maps = client.exec(&id, &["cat", "/proc/1/maps"]).await?;
    let said = client.exec(&id, &["echo", "it runs"]).await?;
    Ok((String::from_utf8(maps.stdout)?, String::from_utf8(said.stdout)?))
}
