//! Small examples for the tests of this crate.

use std::collections::BTreeMap;

use crate::spec::{
    ContainerResources, ContainerSpec, Dns, PidMode, PodIdentity, SandboxResources, SandboxSpec,
    SecuritySpec,
};

/// A pod named `name` with the uid "uid-NAME".
pub(crate) fn sandbox_spec(name: &str) -> SandboxSpec {
    SandboxSpec {
        pod: PodIdentity {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: format!("uid-{name}"),
            attempt: 0,
        },
        handler: String::new(),
        hostname: name.to_owned(),
        dns: Dns::default(),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        annotations: BTreeMap::new(),
        log_directory: "/logs".into(),
        resources: SandboxResources::default(),
        overhead: SandboxResources::default(),
        sysctls: BTreeMap::new(),
        pid_mode: PidMode::Container,
        ports: Vec::new(),
        users: None,
    }
}

/// A container that runs `sleep`.
pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        attempt: 0,
        image: "busybox".to_owned(),
        user_specified_image: "busybox:latest".to_owned(),
        command: vec!["sleep".to_owned()],
        args: vec!["1000".to_owned()],
        working_dir: String::new(),
        env: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: format!("{name}/0.log").into(),
        tty: false,
        stdin: false,
        stdin_once: false,
        stop_signal: String::new(),
        resources: ContainerResources::default(),
        security: SecuritySpec::default(),
        pid_mode: None,
        mounts: Vec::new(),
        volumes: Vec::new(),
        devices: Vec::new(),
    }
}
