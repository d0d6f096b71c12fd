//! The Container Runtime Interface as it is on the wire: messages, server traits and clients.
//!
//! The definitions stand in `proto/runtime/v1`. Messages that hold a credential or the value of an environment variable
//! show neither in `Debug`, so that no request can be logged with its secrets.

use std::fmt;

/// Version 1.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from the commented definitions"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=[{} bytes]", self.key, self.value.len())
    }
}

impl fmt::Debug for v1::WindowsSandboxSecurityContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowsSandboxSecurityContext")
            .field("run_as_username", &self.run_as_username)
            .field("host_process", &self.host_process)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::WindowsContainerSecurityContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowsContainerSecurityContext")
            .field("run_as_username", &self.run_as_username)
            .field("host_process", &self.host_process)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn no_request_shows_its_secrets() {
        let secret = "s3cr3t-value".to_owned();
        let create = v1::CreateContainerRequest {
            config: Some(v1::ContainerConfig {
                envs: vec![v1::KeyValue {
                    key: "TOKEN".into(),
                    value: secret.clone().into_bytes(),
                }],
                windows: Some(v1::WindowsContainerConfig {
                    security_context: Some(v1::WindowsContainerSecurityContext {
                        credential_spec: secret.clone(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pull = v1::PullImageRequest {
            auth: Some(v1::AuthConfig {
                username: secret.clone(),
                password: secret.clone(),
                auth: secret.clone(),
                server_address: "registry.example".into(),
                identity_token: secret.clone(),
                registry_token: secret.clone(),
            }),
            ..Default::default()
        };
        let sandbox = v1::WindowsPodSandboxConfig {
            security_context: Some(v1::WindowsSandboxSecurityContext {
                credential_spec: secret.clone(),
                ..Default::default()
            }),
        };
        let shown = format!("{create:?} {pull:#?} {sandbox:?}");
        assert!(!shown.contains(&secret), "{shown}");
        assert!(
            shown.contains("TOKEN=[12 bytes]") && shown.contains("registry.example"),
            "{shown}"
        );
    }
}
