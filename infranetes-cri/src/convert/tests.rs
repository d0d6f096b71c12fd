use infranetes_core::network::{PortMapping, Protocol};
use infranetes_core::spec::{PidMode, SandboxResources, SandboxSpec, SecuritySpec};

use super::{Refusal, SeccompSource, container_spec, sandbox_spec};
use crate::api::v1;

fn metadata() -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: "web".into(),
        uid: "u1".into(),
        namespace: "default".into(),
        attempt: 2,
    }
}

fn sandbox() -> v1::RunPodSandboxRequest {
    let config = v1::PodSandboxConfig {
        metadata: Some(metadata()),
        log_directory: "/var/log/pods/web".into(),
        ..Default::default()
    };
    v1::RunPodSandboxRequest { config: Some(config), runtime_handler: "vm".into() }
}

pub(super) fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".into(), attempt: 1 }),
        image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
        log_path: "app/0.log".into(),
        ..Default::default()
    }
}

pub(super) fn made_sandbox() -> SandboxSpec {
    sandbox_spec(sandbox()).unwrap()
}

/// What is refused: the field, whether it is wrong or cannot be had, and a part of the sentence.
type Expected = (&'static str, bool, &'static str);

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Refusal>, (field, wrong, part): Expected) {
    let (found, is_wrong, problem) = match result.unwrap_err() {
        Refusal::Invalid { field, problem } => (field, true, problem),
        Refusal::Unsupported { field, problem } => (field, false, problem),
    };
    assert_eq!((found.as_str(), is_wrong), (field, wrong), "{problem}");
    assert!(problem.contains(part), "{field}: {problem:?} has no {part:?}");
}

#[test]
fn a_sandbox_is_what_the_kubelet_says() {
    let mut request = sandbox();
    let config = request.config.as_mut().unwrap();
    config.hostname = "web-0".into();
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.96.0.10".into(), "fd00::a".into()],
        searches: vec!["default.svc.cluster.local".into(), ".".into()],
        options: vec!["ndots:5".into()],
    });
    config.labels.insert("io.kubernetes.pod.uid".into(), "u1".into());
    let port = v1::PortMapping { container_port: 80, ..Default::default() };
    let host = v1::PortMapping {
        protocol: v1::Protocol::Udp as i32,
        host_port: 8080,
        host_ip: "::1".into(),
        ..port.clone()
    };
    config.port_mappings = vec![port, host];
    config.linux = Some(v1::LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/besteffort/podu1".into(),
        sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
        overhead: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            ..Default::default()
        }),
        resources: Some(v1::LinuxContainerResources { cpu_shares: 2048, ..Default::default() }),
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(v1::NamespaceOption {
                pid: v1::NamespaceMode::Container as i32,
                userns_options: Some(v1::UserNamespace {
                    mode: v1::NamespaceMode::Node as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            run_as_user: Some(v1::Int64Value { value: 0 }),
            privileged: true,
            ..Default::default()
        }),
    });
    let spec = sandbox_spec(request).unwrap();
    assert_eq!((spec.pod.uid.as_str(), spec.pod.attempt, spec.handler.as_str()), ("u1", 2, "vm"));
    assert_eq!(spec.dns.servers.len(), 2);
    assert_eq!(spec.resources, SandboxResources { cpu_millis: 2000, memory_bytes: 0 });
    assert_eq!(spec.overhead, SandboxResources { cpu_millis: 0, memory_bytes: 128 << 20 });
    assert_eq!(spec.pid_mode, PidMode::Container);
    assert_eq!(spec.sysctls["net.ipv4.ip_forward"], "1");
    let mapping = PortMapping {
        protocol: Protocol::Udp,
        container_port: 80,
        host_port: 8080,
        host_ip: Some("::1".parse().unwrap()),
    };
    assert_eq!(spec.ports, [mapping], "a port of the pod alone needs nothing");
}

#[test]
fn a_sandbox_that_cannot_be_is_refused_with_the_field() {
    type Change = fn(&mut v1::PodSandboxConfig);
    let cases: &[(Change, Expected)] = &[
        (|c| c.metadata = None, ("config.metadata", true, "missing")),
        (|c| c.metadata.as_mut().unwrap().name.clear(), ("config.metadata.name", true, "missing")),
        (|c| c.metadata.as_mut().unwrap().uid.clear(), ("config.metadata.uid", true, "missing")),
        (
            |c| c.metadata.as_mut().unwrap().namespace.clear(),
            ("config.metadata.namespace", true, "missing"),
        ),
        (
            |c| c.metadata.as_mut().unwrap().uid = "x".repeat(9999),
            ("config.metadata.uid", true, "at most 253"),
        ),
        (
            |c| c.metadata.as_mut().unwrap().name = "a\nb".into(),
            ("config.metadata.name", true, "control character"),
        ),
        (|c| c.hostname = "a b".into(), ("config.hostname", true, "letters")),
        (|c| c.hostname = "h".repeat(65), ("config.hostname", true, "at most 64")),
        (
            |c| c.log_directory = "var/log".into(),
            ("config.log_directory", true, "not an absolute path"),
        ),
        (
            |c| c.log_directory = "/var/log/../../etc".into(),
            ("config.log_directory", true, "\"..\""),
        ),
        (
            |c| {
                c.dns_config = Some(v1::DnsConfig {
                    servers: vec!["dns.example".into()],
                    ..Default::default()
                })
            },
            ("config.dns_config.servers", true, "no IP address"),
        ),
        (
            |c| {
                c.dns_config = Some(v1::DnsConfig {
                    searches: vec!["a\nnameserver 6.6.6.6".into()],
                    ..Default::default()
                })
            },
            ("config.dns_config.searches", true, "not one word"),
        ),
        (
            |c| {
                c.dns_config =
                    Some(v1::DnsConfig { options: vec!["x".into(); 65], ..Default::default() })
            },
            ("config.dns_config.options", true, "at most 64"),
        ),
        (
            |c| c.labels = (0..5000).map(|i| (i.to_string(), String::new())).collect(),
            ("config.labels", true, "at most 4096"),
        ),
        (
            |c| c.annotations = [("a".to_owned(), "x".repeat(1 << 20))].into(),
            ("config.annotations", true, "bytes"),
        ),
        (
            |c| c.port_mappings = vec![v1::PortMapping { host_port: 8080, ..Default::default() }],
            ("config.port_mappings[0].container_port", true, "lead to"),
        ),
        (
            |c| {
                c.port_mappings =
                    vec![v1::PortMapping { host_ip: "node".into(), ..Default::default() }]
            },
            ("config.port_mappings[0].host_ip", true, "no IP address"),
        ),
        (
            |c| {
                c.port_mappings =
                    vec![v1::PortMapping { container_port: 70000, ..Default::default() }]
            },
            ("config.port_mappings[0].container_port", true, "65535"),
        ),
        (
            |c| c.port_mappings = vec![v1::PortMapping { protocol: 9, ..Default::default() }],
            ("config.port_mappings[0].protocol", true, "no meaning"),
        ),
        (|c| c.windows = Some(Default::default()), ("config.windows", false, "Linux")),
        (
            |c| linux(c).sysctls = [("net..x".to_owned(), "1".to_owned())].into(),
            ("config.linux.sysctls", true, "no kernel parameter"),
        ),
        (
            |c| linux(c).sysctls = [("../../etc".to_owned(), "1".to_owned())].into(),
            ("config.linux.sysctls", true, "no kernel parameter"),
        ),
        (
            |c| linux(c).sysctls = [("a.b".to_owned(), "1\n2".to_owned())].into(),
            ("config.linux.sysctls", true, "more than one line"),
        ),
        (
            |c| {
                linux(c).resources = Some(v1::LinuxContainerResources {
                    memory_limit_in_bytes: i64::MAX,
                    ..Default::default()
                })
            },
            ("config.linux.resources.memory_limit_in_bytes", true, "not between"),
        ),
        (
            |c| {
                linux(c).overhead =
                    Some(v1::LinuxContainerResources { cpu_quota: -7, ..Default::default() })
            },
            ("config.linux.overhead.cpu_quota", true, "not between"),
        ),
        (
            |c| namespaces(c).network = v1::NamespaceMode::Node as i32,
            (
                "config.linux.security_context.namespace_options.network",
                false,
                "another RuntimeClass",
            ),
        ),
        (
            |c| namespaces(c).ipc = v1::NamespaceMode::Node as i32,
            ("config.linux.security_context.namespace_options.ipc", false, "another RuntimeClass"),
        ),
        (
            |c| namespaces(c).pid = v1::NamespaceMode::Target as i32,
            ("config.linux.security_context.namespace_options.target_id", true, "missing"),
        ),
        (
            |c| namespaces(c).pid = 17,
            ("config.linux.security_context.namespace_options.pid", true, "no meaning"),
        ),
        (
            |c| namespaces(c).userns_options = Some(Default::default()),
            (
                "config.linux.security_context.namespace_options.userns_options.uids",
                true,
                "0 mappings",
            ),
        ),
        (
            |c| {
                namespaces(c).userns_options = Some(v1::UserNamespace {
                    mode: v1::NamespaceMode::Container as i32,
                    ..Default::default()
                })
            },
            (
                "config.linux.security_context.namespace_options.userns_options.mode",
                false,
                "the pod",
            ),
        ),
        (
            |c| {
                linux(c).security_context.get_or_insert_default().selinux_options =
                    Some(v1::SeLinuxOption { r#type: "t".into(), ..Default::default() })
            },
            ("config.linux.security_context.selinux_options", false, "SELinux"),
        ),
    ];
    for (change, expected) in cases {
        let mut request = sandbox();
        change(request.config.as_mut().unwrap());
        assert_refused(sandbox_spec(request), *expected);
    }
    let none = v1::RunPodSandboxRequest::default();
    assert_refused(sandbox_spec(none), ("config", true, "missing"));
    let long = v1::RunPodSandboxRequest { runtime_handler: "h".repeat(99), ..sandbox() };
    assert_refused(sandbox_spec(long), ("runtime_handler", true, "at most 63"));
}

fn linux(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

fn namespaces(config: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    let context = linux(config).security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default()
}

#[test]
fn a_container_is_what_the_kubelet_says() {
    let mut config = container();
    config.command = vec!["sh".into(), "-c".into()];
    config.envs = vec![v1::KeyValue { key: "A".into(), value: vec![0xff] }];
    config.stop_signal = v1::Signal::Sigusr1 as i32;
    *security(&mut config) = v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: vec!["net_admin".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        }),
        namespace_options: Some(v1::NamespaceOption {
            pid: v1::NamespaceMode::Target as i32,
            target_id: "ab".repeat(32),
            ..Default::default()
        }),
        run_as_user: Some(v1::Int64Value { value: 1000 }),
        run_as_group: Some(v1::Int64Value { value: 7 }),
        supplemental_groups: vec![5],
        supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict as i32,
        readonly_rootfs: true,
        no_new_privs: true,
        masked_paths: vec!["/proc/kcore".into()],
        seccomp: Some(v1::SecurityProfile {
            profile_type: 2,
            localhost_ref: "/var/lib/kubelet/seccomp/p.json".into(),
        }),
        ..Default::default()
    };
    let (spec, seccomp) = container_spec(Some(config), &made_sandbox()).unwrap();
    assert_eq!(seccomp, SeccompSource::File("/var/lib/kubelet/seccomp/p.json".into()));
    assert_eq!(spec.pid_mode, Some(PidMode::Target("ab".repeat(32))));
    assert_eq!(spec.stop_signal, "SIGUSR1");
    assert_eq!(spec.env[0].value, [0xff]);
    let expected = SecuritySpec {
        uid: Some(1000),
        gid: Some(7),
        supplemental_groups: vec![5],
        strict_supplemental_groups: true,
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        read_only_root: true,
        no_new_privileges: true,
        masked_paths: vec!["/proc/kcore".into()],
        ..SecuritySpec::default()
    };
    assert_eq!(spec.security, expected);
}

#[test]
fn a_system_call_filter_comes_from_the_newer_field_and_not_for_the_privileged() {
    let profile = |kind: i32, path: &str| {
        Some(v1::SecurityProfile { profile_type: kind, localhost_ref: path.to_owned() })
    };
    let cases = [
        (None, "", false, SeccompSource::Unconfined),
        (profile(0, ""), "unconfined", false, SeccompSource::RuntimeDefault),
        (profile(1, ""), "runtime/default", false, SeccompSource::Unconfined),
        (profile(2, "/p"), "", false, SeccompSource::File("/p".into())),
        (profile(2, "/p"), "", true, SeccompSource::Unconfined),
        (None, "runtime/default", false, SeccompSource::RuntimeDefault),
        (None, "docker/default", false, SeccompSource::RuntimeDefault),
        (None, "localhost//p", false, SeccompSource::File("/p".into())),
    ];
    for (seccomp, old, privileged, expected) in cases {
        let mut config = container();
        let context = security(&mut config);
        context.seccomp = seccomp.clone();
        context.privileged = privileged;
        #[expect(deprecated, reason = "kubelets of older releases send it")]
        {
            context.seccomp_profile_path = old.to_owned();
        }
        let (_, source) = container_spec(Some(config), &made_sandbox()).unwrap();
        assert_eq!(source, expected, "{seccomp:?} {old:?} {privileged}");
    }
}

#[test]
fn a_container_that_cannot_be_is_refused_with_the_field() {
    type Change = fn(&mut v1::ContainerConfig);
    let cases: &[(Change, Expected)] = &[
        (|c| c.metadata = None, ("config.metadata", true, "missing")),
        (|c| c.metadata.as_mut().unwrap().name.clear(), ("config.metadata.name", true, "missing")),
        (|c| c.image = None, ("config.image", true, "missing")),
        (|c| c.image.as_mut().unwrap().image.clear(), ("config.image.image", true, "missing")),
        (
            |c| c.image.as_mut().unwrap().image = "i".repeat(2000),
            ("config.image.image", true, "at most 1024"),
        ),
        (|c| c.command = vec!["a\0b".into()], ("config.command", true, "NUL")),
        (|c| c.args = vec!["x".repeat(3 << 20)], ("config.args", true, "at most 2097152")),
        (|c| c.args = vec![String::new(); 20_000], ("config.args", true, "at most 16384")),
        (|c| c.working_dir = "srv".into(), ("config.working_dir", true, "not an absolute path")),
        (|c| c.envs = vec![v1::KeyValue::default()], ("config.envs[0].key", true, "missing")),
        (
            |c| c.envs = vec![v1::KeyValue { key: "A=B".into(), value: vec![] }],
            ("config.envs[0].key", true, "\"=\""),
        ),
        (
            |c| c.envs = vec![v1::KeyValue { key: "A".into(), value: b"se\0cret".to_vec() }],
            ("config.envs[0].value", true, "has a NUL byte"),
        ),
        (
            |c| c.envs = vec![v1::KeyValue { key: "A".into(), value: vec![1; 3 << 20] }],
            ("config.envs", true, "bytes"),
        ),
        (|c| c.log_path = "/etc/passwd".into(), ("config.log_path", true, "an absolute path")),
        (|c| c.log_path = "../../etc/passwd".into(), ("config.log_path", true, "\"..\"")),
        (|c| c.stop_signal = 99, ("config.stop_signal", true, "no meaning")),
        (
            |c| c.mounts = mount(|m| m.host_path = String::new()),
            ("config.mounts[0].host_path", true, "missing"),
        ),
        (
            |c| c.mounts = mount(|m| m.host_path = "srv".into()),
            ("config.mounts[0].host_path", true, "absolute"),
        ),
        (
            |c| c.mounts = mount(|m| m.host_path = "/a/../b".into()),
            ("config.mounts[0].host_path", true, "\"..\""),
        ),
        (
            |c| c.mounts = mount(|m| m.container_path = "/a/../b".into()),
            ("config.mounts[0].container_path", true, "\"..\""),
        ),
        (
            |c| c.mounts = mount(|m| m.container_path = "/".into()),
            ("config.mounts[0].container_path", true, "root itself"),
        ),
        (
            |c| c.mounts = mount(|m| m.propagation = 7),
            ("config.mounts[0].propagation", true, "no meaning"),
        ),
        (
            |c| c.mounts = mount(|m| m.mount_options = vec!["rw,exec".into()]),
            ("config.mounts[0].mount_options", false, "rw,exec"),
        ),
        (
            |c| c.mounts = mount(|m| m.uid_mappings = vec![Default::default()]),
            ("config.mounts[0].uidMappings", true, "0 numbers"),
        ),
        (
            |c| c.mounts = mount(|m| m.image_sub_path = "x".into()),
            ("config.mounts[0].image_sub_path", true, "no image"),
        ),
        (
            |c| {
                c.mounts = mount(|m| {
                    m.image = Some(v1::ImageSpec { image: "i".into(), ..Default::default() })
                })
            },
            ("config.mounts[0]", true, "one is possible"),
        ),
        (
            |c| {
                c.mounts = mount(|m| {
                    m.host_path = String::new();
                    m.image = Some(v1::ImageSpec { image: "i".into(), ..Default::default() });
                    m.image_sub_path = "../x".into();
                })
            },
            ("config.mounts[0].image_sub_path", true, "\"..\""),
        ),
        (|c| c.mounts = vec![Default::default(); 1025], ("config.mounts", true, "1025 entries")),
        (
            |c| {
                let (host_path, permissions) = ("/dev/fuse".into(), "rx".into());
                c.devices = vec![v1::Device { host_path, permissions, ..Default::default() }];
            },
            ("config.devices[0].permissions", true, "rwm"),
        ),
        (
            |c| c.cdi_devices = vec![v1::CdiDevice { name: "x".into() }],
            ("config.CDI_devices", false, "devices"),
        ),
        (|c| c.windows = Some(Default::default()), ("config.windows", false, "Linux")),
        (
            |c| resources(c).oom_score_adj = 5000,
            ("config.linux.resources.oom_score_adj", true, "not between -1000 and 1000"),
        ),
        (
            |c| resources(c).cpuset_cpus = "0-2;rm".into(),
            ("config.linux.resources.cpuset_cpus", true, "0-2,4"),
        ),
        (
            |c| resources(c).unified = [("../x".to_owned(), "1".to_owned())].into(),
            ("config.linux.resources.unified", true, "no file of a cgroup"),
        ),
        (
            |c| resources(c).cpu_shares = -1,
            ("config.linux.resources.cpu_shares", true, "not between"),
        ),
        (
            |c| security(c).run_as_user = Some(v1::Int64Value { value: -1 }),
            ("config.linux.security_context.run_as_user", true, "not between"),
        ),
        (
            |c| security(c).run_as_group = Some(v1::Int64Value { value: 5 }),
            ("config.linux.security_context.run_as_group", true, "needs run_as_user"),
        ),
        (
            |c| security(c).supplemental_groups = vec![1 << 40],
            ("config.linux.security_context.supplemental_groups", true, "not between"),
        ),
        (
            |c| security(c).masked_paths = vec!["proc".into()],
            ("config.linux.security_context.masked_paths", true, "absolute"),
        ),
        (
            |c| {
                security(c).capabilities = Some(v1::Capability {
                    add_capabilities: vec!["a b".into()],
                    ..Default::default()
                })
            },
            ("config.linux.security_context.capabilities.add_capabilities", true, "no capability"),
        ),
        (
            |c| {
                security(c).capabilities = Some(v1::Capability {
                    add_ambient_capabilities: vec!["CHOWN".into()],
                    ..Default::default()
                })
            },
            (
                "config.linux.security_context.capabilities.add_ambient_capabilities",
                false,
                "ambient",
            ),
        ),
        (
            |c| {
                security(c).selinux_options =
                    Some(v1::SeLinuxOption { level: "s0".into(), ..Default::default() })
            },
            ("config.linux.security_context.selinux_options", false, "SELinux"),
        ),
        (
            |c| {
                security(c).apparmor =
                    Some(v1::SecurityProfile { profile_type: 2, localhost_ref: "p".into() })
            },
            ("config.linux.security_context.apparmor", false, "AppArmor"),
        ),
        (
            |c| {
                security(c).seccomp =
                    Some(v1::SecurityProfile { profile_type: 2, localhost_ref: "p.json".into() })
            },
            ("config.linux.security_context.seccomp.localhost_ref", true, "absolute"),
        ),
        (
            |c| {
                security(c).namespace_options = Some(v1::NamespaceOption {
                    network: v1::NamespaceMode::Node as i32,
                    ..Default::default()
                })
            },
            (
                "config.linux.security_context.namespace_options.network",
                false,
                "another RuntimeClass",
            ),
        ),
    ];
    for (change, expected) in cases {
        let mut config = container();
        change(&mut config);
        assert_refused(container_spec(Some(config), &made_sandbox()), *expected);
    }
    assert_refused(container_spec(None, &made_sandbox()), ("config", true, "missing"));
    let mut unlogged = made_sandbox();
    unlogged.log_directory = Default::default();
    assert_refused(
        container_spec(Some(container()), &unlogged),
        ("config.log_path", true, "log_directory"),
    );
}

#[test]
fn no_refusal_repeats_the_value_of_a_variable() {
    let mut config = container();
    config.envs = vec![v1::KeyValue { key: "A".into(), value: b"s3cr3t\0".to_vec() }];
    let refusal = container_spec(Some(config), &made_sandbox()).unwrap_err();
    assert!(!format!("{refusal} {refusal:?}").contains("s3cr3t"));
}

fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn mount(change: impl FnOnce(&mut v1::Mount)) -> Vec<v1::Mount> {
    let mut mount = v1::Mount {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        ..Default::default()
    };
    change(&mut mount);
    vec![mount]
}
