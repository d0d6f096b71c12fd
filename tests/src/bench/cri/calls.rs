//! Each unary call of CRI, timed in the life of a pod.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::join_all;
use infranetes_cri::api::v1 as cri;

use super::{Percentiles, Side};
use crate::client::{Client, Pod, container};

/// Calls that only ask.
pub(super) const READS: [&str; 8] = [
    "Status",
    "PodSandboxStatus",
    "ListPodSandbox",
    "ContainerStatus",
    "ListContainers",
    "ListContainerStats",
    "ImageStatus",
    "ListImages",
];

/// Times by call.
#[derive(Default)]
pub(super) struct Samples(BTreeMap<&'static str, Vec<Duration>>);

impl Samples {
    pub(super) fn add(&mut self, other: Samples) {
        for (call, times) in other.0 {
            self.0.entry(call).or_default().extend(times);
        }
    }

    pub(super) fn percentiles(self) -> BTreeMap<&'static str, Percentiles> {
        self.0.into_iter().map(|(call, times)| (call, Percentiles::of(times))).collect()
    }

    async fn time<T>(
        &mut self,
        call: &'static str,
        answer: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T> {
        let started = Instant::now();
        let answer = answer.await.context(call)?;
        self.0.entry(call).or_default().push(started.elapsed());
        Ok(answer)
    }

    /// For calls that one side may lack.
    async fn time_if_there<T>(
        &mut self,
        call: &'static str,
        answer: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<()> {
        let started = Instant::now();
        match answer.await {
            Ok(_) => self.0.entry(call).or_default().push(started.elapsed()),
            Err(status) if status.code() == tonic::Code::Unimplemented => {}
            Err(status) => return Err(status).context(call),
        }
        Ok(())
    }
}

/// One pod with one container, from nothing to nothing.
pub(super) async fn life(side: &mut Side, name: &str, samples: &mut Samples) -> Result<()> {
    let mut client = side.client.clone();
    let pod = pod(side, name)?;
    pull(side, samples).await?;
    client.pull(&side.image).await?;
    let sandbox = samples.time("RunPodSandbox", client.run_pod(&pod)).await?;
    let config = container("main", &side.image, &["sleep", "600"]);
    let id = client.create_container(&sandbox, &pod, config);
    let id = samples.time("CreateContainer", id).await?;
    let request = cri::StartContainerRequest { container_id: id.clone() };
    samples.time("StartContainer", client.runtime.start_container(request)).await?;
    reads(&mut client, side, &sandbox, &id, samples).await?;
    for _ in 0..EXECS {
        let exec = client.exec(&id, &["true"]);
        samples.time("ExecSync", exec).await?;
    }
    samples.time("StopContainer", client.stop_container(&id, 0)).await?;
    let request = cri::RemoveContainerRequest { container_id: id };
    samples.time("RemoveContainer", client.runtime.remove_container(request)).await?;
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    samples.time("StopPodSandbox", client.runtime.stop_pod_sandbox(request)).await?;
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    samples.time("RemovePodSandbox", client.runtime.remove_pod_sandbox(request)).await?;
    Ok(())
}

/// Sixteen callers at once: of the calls that only ask, on one running container.
pub(super) async fn in_parallel(side: &mut Side) -> Result<Samples> {
    let mut client = side.client.clone();
    let pod = pod(side, "parallel")?;
    client.pull(&side.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let config = container("main", &side.image, &["sleep", "600"]);
    let id = client.run_container(&sandbox, &pod, config).await?;
    let callers = (0..CALLERS).map(async |_| {
        let (mut client, mut samples) = (side.client.clone(), Samples::default());
        for _ in 0..ROUNDS_OF_A_CALLER {
            reads(&mut client, side, &sandbox, &id, &mut samples).await?;
            let exec = client.exec(&id, &["true"]);
            samples.time("ExecSync", exec).await?;
        }
        anyhow::Ok(samples)
    });
    let mut all = Samples::default();
    for samples in join_all(callers).await {
        all.add(samples?);
    }
    client.remove_pod(&sandbox).await?;
    Ok(all)
}

/// Every call that only asks, a few times.
pub(super) async fn reads(
    client: &mut Client,
    side: &Side,
    sandbox: &str,
    id: &str,
    samples: &mut Samples,
) -> Result<()> {
    let (runtime, images) = (&mut client.runtime, &mut client.images);
    let image = Some(cri::ImageSpec { image: side.image.clone(), ..Default::default() });
    for _ in 0..READS_OF_A_LIFE {
        let request = cri::VersionRequest { version: "0.1.0".to_owned() };
        samples.time("Version", runtime.version(request)).await?;
        samples.time("Status", runtime.status(cri::StatusRequest::default())).await?;
        let pod_sandbox_id = sandbox.to_owned();
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id, verbose: false };
        samples.time("PodSandboxStatus", runtime.pod_sandbox_status(request)).await?;
        let request = cri::ListPodSandboxRequest::default();
        samples.time("ListPodSandbox", runtime.list_pod_sandbox(request)).await?;
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        samples.time("ContainerStatus", runtime.container_status(request)).await?;
        let request = cri::ListContainersRequest::default();
        samples.time("ListContainers", runtime.list_containers(request)).await?;
        let request = cri::ListContainerStatsRequest::default();
        samples.time_if_there("ListContainerStats", runtime.list_container_stats(request)).await?;
        let request = cri::ImageStatusRequest { image: image.clone(), ..Default::default() };
        samples.time("ImageStatus", images.image_status(request)).await?;
        samples.time("ListImages", images.list_images(cri::ListImagesRequest::default())).await?;
        samples.time("ImageFsInfo", images.image_fs_info(cri::ImageFsInfoRequest {})).await?;
    }
    Ok(())
}

async fn pull(side: &mut Side, samples: &mut Samples) -> Result<()> {
    let spec = cri::ImageSpec { image: side.pulled.clone(), ..Default::default() };
    let images = &mut side.client.images;
    let request = cri::PullImageRequest { image: Some(spec.clone()), ..Default::default() };
    samples.time("PullImage", images.pull_image(request)).await?;
    let request = cri::RemoveImageRequest { image: Some(spec) };
    samples.time("RemoveImage", images.remove_image(request)).await?;
    Ok(())
}

pub(super) fn pod(side: &Side, name: &str) -> Result<Pod> {
    let directory = side.logs.join(name);
    std::fs::create_dir_all(&directory)?;
    Ok(Pod {
        name: name.to_owned(),
        handler: String::new(),
        log_directory: directory.display().to_string(),
    })
}

const READS_OF_A_LIFE: usize = 5;
const EXECS: usize = 3;
const CALLERS: usize = 16;
const ROUNDS_OF_A_CALLER: usize = 3;
