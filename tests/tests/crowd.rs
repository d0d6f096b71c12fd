//! Many pods at once start and stop clean.

use anyhow::{Result, ensure};
use infranetes_cri::api::v1::PodSandboxState;
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::container;

#[tokio::test]
async fn ten_process_pods_at_once_start_and_stop_clean() -> Result<()> {
    case::run("process", async |case| crowd(case, 10).await).await
}

#[tokio::test]
async fn two_machines_at_once_start_and_stop_clean() -> Result<()> {
    case::run("qemu", async |case| crowd(case, 2).await).await
}

/// All of them at every moment: run, execute, remove.
async fn crowd(case: &mut Case, count: usize) -> Result<()> {
    case.client().pull(&case.image).await?;
    let mut lives = tokio::task::JoinSet::new();
    for number in 0..count {
        let (mut client, image) = (case.client(), case.image.clone());
        let pod = case.pod(&format!("crowd-{number}"));
        lives.spawn(async move {
            let sandbox = client.run_pod(&pod).await?;
            let status = client.sandbox(&sandbox).await?.status.unwrap_or_default();
            ensure!(status.state == PodSandboxState::SandboxReady as i32, "{status:?}");
            let config = container("main", &image, &["sleep", "600"]);
            let id = client.run_container(&sandbox, &pod, config).await?;
            let name = client.exec(&id, &["hostname"]).await?.stdout;
            let name = String::from_utf8_lossy(&name).trim().to_owned();
            ensure!(name == pod.name, "the machine of {} calls itself {name}", pod.name);
            client.remove_pod(&sandbox).await?;
            Ok(())
        });
    }
    while let Some(life) = lives.join_next().await {
        life??;
    }
    Ok(())
}
