//! Containers.

use std::path::{Path, PathBuf};

use infranetes_core::error::EngineError;
use infranetes_core::spec::Seccomp;
use infranetes_core::status::ContainerStatus;
use tokio::io::AsyncReadExt;
use tonic::Status;

use super::Cri;
use crate::api::v1;
use crate::convert::{self, ContainerFilter, Refusal, SeccompSource};

impl Cri {
    pub(super) async fn create_container(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, Status> {
        let sandbox = self.find_sandbox(request.pod_sandbox_id)?.or_not_found("sandbox")?;
        let (mut spec, seccomp) = convert::container_spec(request.config, &sandbox.spec)
            .map_err(convert::from_refusal)?;
        spec.security.seccomp = read_seccomp(seccomp).await.map_err(convert::from_refusal)?;
        let created = self.engine().create_container(&sandbox.id, spec).await;
        let id = created.map_err(convert::from_engine)?;
        Ok(v1::CreateContainerResponse { container_id: id.to_string() })
    }

    pub(super) async fn start_container(
        &self,
        request: v1::StartContainerRequest,
    ) -> Result<v1::StartContainerResponse, Status> {
        let container = self.find_container(request.container_id)?.or_not_found("container")?;
        self.engine().start_container(&container.id).await.map_err(convert::from_engine)?;
        Ok(v1::StartContainerResponse {})
    }

    pub(super) async fn stop_container(
        &self,
        request: v1::StopContainerRequest,
    ) -> Result<v1::StopContainerResponse, Status> {
        if let Some(container) = self.find_container(request.container_id)?.item {
            let grace = convert::stop_grace(request.timeout);
            gone_is_success(self.engine().stop_container(&container.id, grace).await)?;
        }
        Ok(v1::StopContainerResponse {})
    }

    pub(super) async fn remove_container(
        &self,
        request: v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse, Status> {
        if let Some(container) = self.find_container(request.container_id)?.item {
            gone_is_success(self.engine().remove_container(&container.id).await)?;
        }
        Ok(v1::RemoveContainerResponse {})
    }

    pub(super) fn list_containers(
        &self,
        request: v1::ListContainersRequest,
    ) -> v1::ListContainersResponse {
        let filter = ContainerFilter::new(request.filter);
        let all = self.engine().containers();
        let item = |container: &ContainerStatus| {
            let image = self.images().status(&container.image_id);
            convert::container_item(container, image.as_ref())
        };
        let listed = all.iter().filter(|container| filter.admits(container));
        v1::ListContainersResponse { containers: listed.map(item).collect() }
    }

    pub(super) fn container_status(
        &self,
        request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse, Status> {
        let container = self.find_container(request.container_id)?.or_not_found("container")?;
        let sandbox = self.engine().sandbox(&container.sandbox);
        let spec = sandbox.as_ref().map(|sandbox| &*sandbox.spec);
        let info = if request.verbose {
            convert::container_info(&container, sandbox.as_ref())
        } else {
            Default::default()
        };
        let image = self.images().status(&container.image_id);
        let status = convert::container_status(&container, image.as_ref(), spec);
        Ok(v1::ContainerStatusResponse { status: Some(status), info })
    }

    pub(super) async fn exec_sync(
        &self,
        request: v1::ExecSyncRequest,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let args = convert::exec_args(request.cmd).map_err(convert::from_refusal)?;
        let timeout = convert::exec_timeout(request.timeout).map_err(convert::from_refusal)?;
        let container = self.find_container(request.container_id)?.or_not_found("container")?;
        let result = self.engine().exec_sync(&container.id, args, timeout).await;
        let mut result = result.map_err(convert::from_engine)?;
        convert::fit_output(&mut result.stdout, &mut result.stderr, self.0.message_bytes);
        Ok(v1::ExecSyncResponse {
            stdout: result.stdout,
            stderr: result.stderr,
            exit_code: result.exit_code,
        })
    }

    pub(super) async fn reopen_log(
        &self,
        request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse, Status> {
        let container = self.find_container(request.container_id)?.or_not_found("container")?;
        self.engine().reopen_log(&container.id).await.map_err(convert::from_engine)?;
        Ok(v1::ReopenContainerLogResponse {})
    }
}

fn gone_is_success(result: Result<(), EngineError>) -> Result<(), Status> {
    match result {
        Err(EngineError::ContainerNotFound(_)) => Ok(()),
        result => result.map_err(convert::from_engine),
    }
}

/// A profile on the node travels into the machine, so it is read here.
pub(super) async fn read_seccomp(source: SeccompSource) -> Result<Seccomp, Refusal> {
    match source {
        SeccompSource::Unconfined => Ok(Seccomp::Unconfined),
        SeccompSource::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
        SeccompSource::File(path) => read_profile(path).await.map(Seccomp::Profile),
    }
}

async fn read_profile(path: PathBuf) -> Result<Vec<u8>, Refusal> {
    let refused = |problem: String| {
        Refusal::invalid(
            "config.linux.security_context.seccomp",
            format!("{}: {problem}", path.display()),
        )
    };
    let profile = read_bounded(&path).await.map_err(|error| refused(error.to_string()))?;
    if profile.len() > MAX_PROFILE_BYTES {
        return Err(refused(format!("a profile has at most {MAX_PROFILE_BYTES} bytes")));
    }
    match serde_json::from_slice::<serde_json::Value>(&profile) {
        Ok(serde_json::Value::Object(_)) => Ok(profile),
        _ => Err(refused("is no seccomp profile: it has to be a JSON object".to_owned())),
    }
}

/// Reads a little more than is allowed, never more.
async fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    if !file.metadata().await?.is_file() {
        return Err(std::io::Error::other("is not a file"));
    }
    let mut profile = Vec::new();
    file.take(MAX_PROFILE_BYTES as u64 + 1).read_to_end(&mut profile).await?;
    Ok(profile)
}

const MAX_PROFILE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_seccomp_profile_is_read_from_the_node_if_it_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            std::fs::write(directory.path().join(name), content).unwrap();
        };
        file("good", b"{\"defaultAction\":\"SCMP_ACT_ALLOW\"}");
        file("text", b"allow");
        file("list", b"[]");
        file("huge", &vec![b' '; MAX_PROFILE_BYTES + 1]);
        let cases = [
            ("good", None),
            ("text", Some("JSON object")),
            ("list", Some("JSON object")),
            ("huge", Some("at most 1048576 bytes")),
            ("missing", Some("No such file")),
            (".", Some("is not a file")),
        ];
        for (name, expected) in cases {
            let path = directory.path().join(name);
            let read = read_seccomp(SeccompSource::File(path.clone())).await;
            match expected {
                None => assert_eq!(read, Ok(Seccomp::Profile(std::fs::read(path).unwrap()))),
                Some(part) => {
                    let refusal = read.unwrap_err().to_string();
                    assert!(refusal.contains(part) && refusal.contains(name), "{refusal}");
                }
            }
        }
    }
}
