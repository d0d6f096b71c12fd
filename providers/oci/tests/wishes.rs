//! What a request asks for, seen from inside of the container.

mod support;

use std::collections::HashMap;

use infranetes_sdk::v1::{
    CreateContainerRequest, Device, EnvVar, Mount, Namespaces, PidNamespace, Resources, Rlimit,
    Seccomp, SeccompMode, Security, UpdateContainerRequest,
};
use infranetes_sdk::{ContainerProvider, ErrorKind};
use support::{World, container, ctx, exec, isolated, script};

/// Changes a request, runs it, and compares what it printed.
async fn check(
    world: &World,
    image: &infranetes_sdk::v1::Image,
    body: &str,
    change: impl FnOnce(&mut CreateContainerRequest),
    expected: &str,
) {
    let mut request = script("c1", image, body);
    change(&mut request);
    let (status, stdout, stderr) = world.output(request).await;
    assert_eq!(stdout.trim(), expected, "{body}: {status:?} {stderr}");
}

fn security(change: impl FnOnce(&mut Security)) -> impl FnOnce(&mut CreateContainerRequest) {
    move |request| {
        let mut security = Security::default();
        change(&mut security);
        request.security = Some(security);
    }
}

#[test]
fn a_container_is_who_it_was_asked_to_be() {
    isolated("a_container_is_who_it_was_asked_to_be", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let id = "id -u; id -g; id -G";
        check(&world, &image, id, security(|_| {}), "0\n0\n0").await;
        check(&world, &image, id, security(|one| one.image_user = "web".into()), "33\n34\n34 50")
            .await;
        let change = security(|one| {
            (one.uid, one.gid) = (Some(1234), Some(77));
            one.supplemental_groups = vec![5];
        });
        check(&world, &image, id, change, "1234\n77\n77 5").await;
        // It may write to its own output, whoever it is.
        let change = security(|one| one.uid = Some(1234));
        check(&world, &image, "echo yes > /dev/stdout", change, "yes").await;
        let mut nobody = script("c1", &image, "true");
        security(|one| one.user_name = "nobody".into())(&mut nobody);
        let error = world.provider.create(ctx(), nobody).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        world.assert_clean();
    });
}

#[test]
fn a_container_can_do_what_it_was_given_and_no_more() {
    isolated("a_container_can_do_what_it_was_given_and_no_more", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let caps =
            "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t\\n' '  '";
        let default = "CapEff: 00000000a80425fb CapBnd: 00000000a80425fb NoNewPrivs: 0 Seccomp: 0";
        check(&world, &image, caps, security(|_| {}), default).await;
        let none = "CapEff: 0000000000000000 CapBnd: 0000000000000400 NoNewPrivs: 1 Seccomp: 0";
        let change = security(|one| {
            one.uid = Some(7);
            one.drop_capabilities = vec!["ALL".into()];
            one.add_capabilities = vec!["NET_BIND_SERVICE".into()];
            one.no_new_privileges = true;
        });
        check(&world, &image, caps, change, none).await;
        let change = security(|one| one.read_only_root = true);
        check(&world, &image, "touch /x 2>/dev/null; echo $?", change, "1").await;
        let change = security(|one| {
            one.masked_paths = vec!["/proc/version".into(), "/proc/acpi".into(), "/nope".into()];
            one.read_only_paths = vec!["/proc/sys".into()];
        });
        let look = "cat /proc/version; echo x > /proc/sys/kernel/domainname; echo $?";
        check(&world, &image, look, change, "1").await;
        let change = security(|one| one.privileged = true);
        let look =
            "mkdir /m && mount -t tmpfs none /m && test -e /dev/mem -o -e /dev/kmsg && echo all";
        check(&world, &image, look, change, "all").await;
        world.assert_clean();
    });
}

#[test]
fn system_calls_are_filtered_as_asked_for() {
    isolated("system_calls_are_filtered_as_asked_for", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let filter = |mode: SeccompMode, profile: &str, add: &[&str]| {
            let seccomp = Seccomp { mode: mode as i32, profile: profile.as_bytes().to_vec() };
            let add_capabilities = add.iter().map(|name| (*name).to_owned()).collect();
            security(|one| {
                one.seccomp = Some(seccomp);
                one.add_capabilities = add_capabilities;
            })
        };
        // Without the filter, the capability is enough.
        let unshare =
            "unshare -u true 2>/dev/null; echo $?; grep Seccomp: /proc/self/status | tr -d '\\t'";
        let change = filter(SeccompMode::Unspecified, "", &["SYS_ADMIN"]);
        check(&world, &image, unshare, change, "0\nSeccomp:0").await;
        let change = filter(SeccompMode::RuntimeDefault, "", &["SYS_ADMIN"]);
        check(&world, &image, unshare, change, "0\nSeccomp:2").await;
        let change = filter(SeccompMode::RuntimeDefault, "", &[]);
        check(&world, &image, "unshare -U true 2>/dev/null; echo $?", change, "1").await;
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
        let change = filter(SeccompMode::Profile, profile, &[]);
        check(
            &world,
            &image,
            "mkdir /x 2>&1",
            change,
            "mkdir: can't create directory '/x': No space left on device",
        )
        .await;
        world.assert_clean();
    });
}

#[test]
fn a_container_sees_what_is_mounted_and_set_for_it() {
    isolated("a_container_sees_what_is_mounted_and_set_for_it", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let host = world.dir.path().join("volume");
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("file"), "from outside").unwrap();
        let bind = |destination: &str, options: &[&str]| Mount {
            source: host.display().to_string(),
            destination: destination.into(),
            r#type: "bind".into(),
            options: options.iter().map(|one| (*one).to_owned()).collect(),
            ..Default::default()
        };
        let mounts = vec![
            bind("/data/deep/er", &["ro"]),
            bind("/rw", &["rw"]),
            Mount {
                destination: "/data".into(),
                r#type: "tmpfs".into(),
                options: vec!["size=64k".into(), "mode=700".into()],
                ..Default::default()
            },
        ];
        let look = "cat /data/deep/er/file; echo; touch /data/deep/er/x 2>/dev/null; echo $?;
            touch /rw/new; stat -c %a /data; grep -o '/data tmpfs.*size=64k' /proc/mounts | wc -l";
        let change = |request: &mut CreateContainerRequest| request.mounts = mounts.clone();
        check(&world, &image, look, change, "from outside\n1\n700\n1").await;
        assert!(host.join("new").exists());
        let change = |request: &mut CreateContainerRequest| {
            let process = request.process.as_mut().unwrap();
            process.cwd = "/made/for/it".into();
            process.env = vec![EnvVar { name: "WORD".into(), value: b"a b=c".to_vec() }];
            process.rlimits = vec![Rlimit { name: "RLIMIT_NOFILE".into(), soft: 100, hard: 200 }];
            request.hostname = "its-name".into();
        };
        let look = "pwd; echo \"$WORD\"; ulimit -n; hostname; echo $HOSTNAME";
        check(&world, &image, look, change, "/made/for/it\na b=c\n100\nits-name\nits-name").await;
        let change = |request: &mut CreateContainerRequest| {
            request.devices = vec![Device {
                source: "/dev/loop-control".into(),
                destination: "/dev/mine".into(),
                permissions: "rw".into(),
            }];
        };
        let source_exists = std::path::Path::new("/dev/loop-control").exists();
        if source_exists {
            check(&world, &image, "test -c /dev/mine && : < /dev/mine && echo ok", change, "ok")
                .await;
        }
        let look =
            "echo x > /dev/null && head -c 4 /dev/zero | wc -c && test -c /dev/tty && echo ok";
        check(&world, &image, look, |_| {}, "4\nok").await;
        world.assert_clean();
    });
}

#[test]
fn namespaces_are_shared_as_asked_for() {
    isolated("namespaces_are_shared_as_asked_for", async || {
        let world = World::with(|config| {
            config.pause = vec!["/bin/sleep".into(), "1000".into()];
        })
        .await;
        let image = world.busybox().await;
        let pid = |mode: PidNamespace, target: &str| {
            let namespaces =
                Namespaces { pid: mode as i32, pid_target: target.into(), ..Default::default() };
            move |request: &mut CreateContainerRequest| request.namespaces = Some(namespaces)
        };
        check(&world, &image, "echo $$", pid(PidNamespace::Unspecified, ""), "1").await;
        let look = "test $$ -gt 1 && cat /proc/1/comm";
        check(&world, &image, look, pid(PidNamespace::Pod, ""), "sleep").await;
        let mine = std::fs::read_to_string("/proc/1/comm").unwrap();
        check(&world, &image, "cat /proc/1/comm", pid(PidNamespace::Machine, ""), mine.trim())
            .await;
        world.run(script("target", &image, "exec sleep 4321")).await;
        let look = "tr '\\0' ' ' < /proc/1/cmdline";
        check(&world, &image, look, pid(PidNamespace::Target, "target"), "sleep 4321").await;
        world.provider.remove(ctx(), container("target")).await.unwrap();
        let mut lost = script("c1", &image, "true");
        pid(PidNamespace::Target, "target")(&mut lost);
        let error = world.provider.create(ctx(), lost).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        // What stays behind in a shared namespace ends with its container.
        let mut leaving = script("c1", &image, "sleep 98765 & true");
        pid(PidNamespace::Machine, "")(&mut leaving);
        let (status, ..) = world.output(leaving).await;
        assert_eq!(status.exit_code, 0);
        let net = |private_network: bool| {
            let namespaces = Namespaces { private_network, ..Default::default() };
            move |request: &mut CreateContainerRequest| {
                request.namespaces = Some(namespaces);
                if private_network {
                    let sysctl = ("net.ipv4.ip_forward".to_owned(), "1".to_owned());
                    request.sysctls = HashMap::from([sysctl]);
                }
            }
        };
        let look = "ls /sys/class/net | wc -l; cat /proc/sys/net/ipv4/ip_forward";
        check(&world, &image, look, net(true), "1\n1").await;
        world.assert_clean();
    });
}

#[test]
fn limits_hold_and_running_out_of_memory_is_told() {
    isolated("limits_hold_and_running_out_of_memory_is_told", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let limits = |resources: Resources| {
            move |request: &mut CreateContainerRequest| request.resources = Some(resources)
        };
        let mut hungry = script("c1", &image, "tail -c 200000000 /dev/zero | tail -c 1 | wc -c");
        hungry.process.as_mut().unwrap().args[2] = "exec tail -c 200000000 /dev/zero".into();
        limits(Resources { memory_limit_bytes: 16 << 20, ..Default::default() })(&mut hungry);
        let (status, ..) = world.output(hungry).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
        let mut many = script("c1", &image, "for i in 1 2 3 4 5 6; do sleep 1 & done; wait");
        limits(Resources { pids_limit: 4, ..Default::default() })(&mut many);
        let (_, _, stderr) = world.output(many).await;
        assert!(stderr.contains("fork"), "{stderr}");
        // Killed is not the same as out of memory.
        let (status, ..) =
            world.output(script("c1", &image, "kill -9 $$; sleep 1; exit 137")).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        world.run(script("c1", &image, "exec sleep 1000")).await;
        let update = UpdateContainerRequest {
            id: "c1".into(),
            resources: Some(Resources { memory_limit_bytes: 32 << 20, ..Default::default() }),
        };
        world.provider.update(ctx(), update).await.unwrap();
        let (exit, out, _) = world
            .exec(
                exec("c1", &["sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes"]),
                vec![],
            )
            .await
            .unwrap();
        assert_eq!((exit.code, out.trim()), (0, "33554432"));
        let stats = world.provider.stats(ctx(), Default::default()).await.unwrap().stats;
        assert!(stats[0].memory_usage_bytes > 0 && stats[0].processes == 1, "{stats:?}");
        assert!(stats[0].writable_layer_inodes < 100);
        world.provider.remove(ctx(), container("c1")).await.unwrap();
        world.assert_clean();
    });
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    isolated("what_cannot_be_done_is_refused_and_leaves_nothing", async || {
        let world = World::new().await;
        let image = world.busybox().await;
        let mount = |kind: &str, source: &str, option: &str| Mount {
            source: source.into(),
            destination: "/m".into(),
            r#type: kind.into(),
            options: vec![option.into()],
            ..Default::default()
        };
        type Change<'a> = &'a dyn Fn(&mut CreateContainerRequest);
        let cases: [(&str, ErrorKind, Change<'_>); 11] = [
            ("an id", ErrorKind::Invalid, &|one| one.id = "../x".into()),
            ("no program", ErrorKind::Invalid, &|one| one.process = None),
            ("a signal", ErrorKind::Invalid, &|one| {
                one.process.as_mut().unwrap().stop_signal = "SIGNOPE".into();
            }),
            ("a file system", ErrorKind::Unsupported, &|one| {
                one.mounts = vec![mount("nfs", "server:/x", "ro")];
            }),
            ("a bind option", ErrorKind::Unsupported, &|one| {
                one.mounts = vec![mount("bind", "/tmp", "size=5")];
            }),
            ("a missing source", ErrorKind::Invalid, &|one| {
                one.mounts = vec![mount("bind", "/no/such", "ro")];
            }),
            ("a device that is none", ErrorKind::Invalid, &|one| {
                one.devices = vec![Device {
                    source: "/etc/passwd".into(),
                    destination: "/dev/x".into(),
                    permissions: "r".into(),
                }];
            }),
            ("a shared pid namespace", ErrorKind::Unsupported, &|one| {
                one.namespaces =
                    Some(Namespaces { pid: PidNamespace::Pod as i32, ..Default::default() });
            }),
            ("a sysctl of the machine", ErrorKind::Unsupported, &|one| {
                one.sysctls = HashMap::from([("vm.swappiness".to_owned(), "1".to_owned())]);
            }),
            ("an order to the runtime", ErrorKind::Unsupported, &|one| {
                let order = ("run.oci.hooks.stdout".to_owned(), "/x".to_owned());
                one.annotations = HashMap::from([order]);
            }),
            ("an image that is not here", ErrorKind::NotFound, &|one| {
                let layer = &mut one.image.as_mut().unwrap().layers[0];
                layer.diff_id = support::digest(b"nope");
                one.image.as_mut().unwrap().id = support::digest(b"another");
            }),
        ];
        for (what, kind, change) in cases {
            let mut request = script("c1", &image, "true");
            change(&mut request);
            let error = world.provider.create(ctx(), request).await.expect_err(what);
            assert_eq!(error.kind, kind, "{what}: {error:?}");
            world.assert_clean();
        }
    });
}
