//! What a container runs: the image's defaults and the pod's wishes merged, as Kubernetes and Docker define it. Pure.

use crate::engine::parts::ResolvedImage;
use crate::error::EngineError;
use crate::session::ContainerPlan;
use crate::spec::{ContainerSpec, EnvVar, SandboxSpec};

/// Merges what the pod wants with what the image brings.
pub(crate) fn merge(
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    image: &ResolvedImage,
) -> Result<ContainerPlan, EngineError> {
    check_user(spec)?;
    Ok(ContainerPlan {
        image: image.image.clone(),
        args: args(spec, image)?,
        env: env(sandbox, spec, image)?,
        cwd: first_of([&spec.working_dir, &image.working_dir], "/"),
        tty: spec.tty,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        stop_signal: first_of([&spec.stop_signal, &image.stop_signal], "SIGTERM"),
        image_user: image.user.clone(),
        security: spec.security.clone(),
        resources: spec.resources.clone(),
        pid_mode: spec.pid_mode.clone().unwrap_or_else(|| sandbox.pid_mode.clone()),
        users: sandbox.users,
        mounts: spec.mounts.clone(),
        volumes: Vec::new(),
        devices: spec.devices.clone(),
    })
}

/// `command` replaces the image's entrypoint and its arguments; `args` alone replaces only the arguments.
fn args(spec: &ContainerSpec, image: &ResolvedImage) -> Result<Vec<String>, EngineError> {
    let (program, args) = match (spec.command.is_empty(), spec.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &spec.args),
        (false, _) => (&spec.command, &spec.args),
    };
    let all: Vec<String> = program.iter().chain(args).cloned().collect();
    if all.is_empty() {
        return Err(invalid("command", "neither the container nor its image names a program"));
    }
    Ok(all)
}

/// What the machine gives goes first, then the image's, then the pod's; the last one of a name wins.
fn env(
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    image: &ResolvedImage,
) -> Result<Vec<EnvVar>, EngineError> {
    let mut merged: Vec<EnvVar> = Vec::new();
    let mut set = |name: &str, value: &[u8]| {
        let value = value.to_vec();
        match merged.iter_mut().find(|var| var.name == name) {
            Some(var) => var.value = value,
            None => merged.push(EnvVar { name: name.to_owned(), value }),
        }
    };
    set("PATH", DEFAULT_PATH.as_bytes());
    if !sandbox.hostname.is_empty() {
        set("HOSTNAME", sandbox.hostname.as_bytes());
    }
    if spec.tty {
        set("TERM", b"xterm");
    }
    for line in &image.env {
        if let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.is_empty()) {
            set(name, value.as_bytes());
        }
    }
    for var in &spec.env {
        let broken =
            var.name.is_empty() || var.name.contains(['=', '\0']) || var.value.contains(&0);
        if broken {
            return Err(invalid(
                "env",
                "a variable has no name, or its name has '=', or a NUL is in it",
            ));
        }
        set(&var.name, &var.value);
    }
    Ok(merged)
}

fn check_user(spec: &ContainerSpec) -> Result<(), EngineError> {
    let security = &spec.security;
    if security.gid.is_some() && security.uid.is_none() && security.user_name.is_empty() {
        return Err(invalid("security.gid", "a group needs a user beside it"));
    }
    Ok(())
}

fn first_of(choices: [&String; 2], otherwise: &str) -> String {
    choices.into_iter().find(|text| !text.is_empty()).map_or(otherwise, |text| text).to_owned()
}

fn invalid(field: &str, problem: &str) -> EngineError {
    EngineError::Invalid { field: field.to_owned(), problem: problem.to_owned() }
}

/// What Docker and the other runtimes give a container whose image says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PidMode;
    use crate::testing;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd_as_in_kubernetes() {
        // entrypoint, cmd, command, args -> what runs
        let cases = [
            ("/ep", "c1 c2", "", "", "/ep c1 c2"),
            ("/ep", "c1 c2", "", "a1", "/ep a1"),
            ("/ep", "c1 c2", "/cmd", "", "/cmd"),
            ("/ep", "c1 c2", "/cmd x", "a1 a2", "/cmd x a1 a2"),
            ("", "sh -c", "", "", "sh -c"),
            ("", "sh", "", "ls", "ls"),
            ("/ep", "", "", "", "/ep"),
        ];
        for (entrypoint, cmd, command, args, wanted) in cases {
            let image = ResolvedImage {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..Default::default()
            };
            let spec = ContainerSpec {
                command: words(command),
                args: words(args),
                ..testing::container_spec("c")
            };
            let plan = merge(&testing::sandbox_spec("p"), &spec, &image).unwrap();
            assert_eq!(plan.args.join(" "), wanted, "{entrypoint:?} {cmd:?} {command:?} {args:?}");
        }
    }

    #[test]
    fn an_image_without_a_program_needs_a_command() {
        let spec = ContainerSpec { command: vec![], args: vec![], ..testing::container_spec("c") };
        let answer = merge(&testing::sandbox_spec("p"), &spec, &ResolvedImage::default());
        assert!(matches!(answer, Err(EngineError::Invalid { field, .. }) if field == "command"));
    }

    #[test]
    fn the_last_variable_of_a_name_wins() {
        // image, pod -> what PATH, A and B are
        let path = DEFAULT_PATH;
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: [(&[&str], Pairs<'_>, Pairs<'_>); 5] = [
            (&[], &[], &[("PATH", path)]),
            (&["PATH=/img", "A=1"], &[], &[("PATH", "/img"), ("A", "1")]),
            (&["A=1", "B=2"], &[("A", "3")], &[("PATH", path), ("A", "3"), ("B", "2")]),
            (&["A=x=y", "=odd", "odd"], &[("B", "")], &[("PATH", path), ("A", "x=y"), ("B", "")]),
            (&[], &[("A", "1"), ("A", "2")], &[("PATH", path), ("A", "2")]),
        ];
        for (image, pod, wanted) in cases {
            let image = ResolvedImage {
                cmd: words("sh"),
                env: image.iter().map(|line| (*line).to_owned()).collect(),
                ..Default::default()
            };
            let var = |(name, value): &(&str, &str)| EnvVar {
                name: (*name).to_owned(),
                value: value.as_bytes().to_vec(),
            };
            let spec = ContainerSpec {
                env: pod.iter().map(var).collect(),
                ..testing::container_spec("c")
            };
            let sandbox = SandboxSpec { hostname: String::new(), ..testing::sandbox_spec("p") };
            let plan = merge(&sandbox, &spec, &image).unwrap();
            assert_eq!(plan.env, wanted.iter().map(var).collect::<Vec<_>>());
        }
    }

    #[test]
    fn terminal_and_host_name_show_in_the_environment() {
        let spec = ContainerSpec { tty: true, ..testing::container_spec("c") };
        let sandbox = SandboxSpec { hostname: "web-0".into(), ..testing::sandbox_spec("p") };
        let plan = merge(&sandbox, &spec, &ResolvedImage::default()).unwrap();
        let value = |name: &str| {
            let var = plan.env.iter().find(|var| var.name == name);
            var.map(|var| String::from_utf8(var.value.clone()).unwrap())
        };
        assert_eq!(value("TERM").as_deref(), Some("xterm"));
        assert_eq!(value("HOSTNAME").as_deref(), Some("web-0"));
    }

    #[test]
    fn broken_variables_and_a_group_without_a_user_are_refused() {
        let with_env = |name: &str, value: &[u8]| ContainerSpec {
            env: vec![EnvVar { name: name.into(), value: value.into() }],
            ..testing::container_spec("c")
        };
        let mut lonely_group = testing::container_spec("c");
        lonely_group.security.gid = Some(5);
        for bad in [with_env("", b""), with_env("A=B", b""), with_env("A", b"\0"), lonely_group] {
            let answer = merge(&testing::sandbox_spec("p"), &bad, &ResolvedImage::default());
            assert!(matches!(answer, Err(EngineError::Invalid { .. })), "{bad:?}");
        }
    }

    #[test]
    fn directory_signal_and_pid_mode_fall_back_in_order() {
        for (spec, image, wanted) in [("/s", "/i", "/s"), ("", "/i", "/i"), ("", "", "/")] {
            assert_eq!(first_of([&spec.to_owned(), &image.to_owned()], "/"), wanted);
        }
        let sandbox = SandboxSpec { pid_mode: PidMode::Pod, ..testing::sandbox_spec("p") };
        let own =
            ContainerSpec { pid_mode: Some(PidMode::Machine), ..testing::container_spec("c") };
        let image = ResolvedImage::default();
        let plan = merge(&sandbox, &testing::container_spec("c"), &image).unwrap();
        assert_eq!((plan.pid_mode, plan.stop_signal.as_str()), (PidMode::Pod, "SIGTERM"));
        assert_eq!(merge(&sandbox, &own, &image).unwrap().pid_mode, PidMode::Machine);
    }
}
