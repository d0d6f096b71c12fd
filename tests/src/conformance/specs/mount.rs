//! Directories of the node in containers.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1::{self as cri, MountPropagation};

use crate::conformance::context::{Context, Sandbox};
use crate::conformance::spec::{Group, Skip, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let volumes = Group::new("Container > runtime should support adding volume and device")
        .spec("runtime should support starting container with volume [Conformance]", |c| {
            Box::pin(volume(c, false))
        })
        .spec("runtime should support starting container with volume when host path is a symlink [Conformance]", |c| {
            Box::pin(volume(c, true))
        })
        .done();
    let propagation = Group::new(
        "Container Mount Propagation > runtime should support mount propagation",
    )
    .spec("mount with 'rprivate' should not support propagation", |c| {
        Box::pin(propagates(c, MountPropagation::PropagationPrivate))
    })
    .spec(
        "mount with 'rshared' should support propagation from host to container and vice versa",
        |c| Box::pin(propagates(c, MountPropagation::PropagationBidirectional)),
    )
    .spec("mount with 'rslave' should support propagation from host to container", |c| {
        Box::pin(propagates(c, MountPropagation::PropagationHostToContainer))
    })
    .done();
    let read_only = Group::new("Container Mount Readonly > runtime should support readonly mounts")
        .spec("should support non-recursive readonly mounts", |c| Box::pin(read_only(c, false)))
        .spec("should support recursive readonly mounts", |c| Box::pin(read_only(c, true)))
        .spec("should reject a recursive readonly mount with PROPAGATION_HOST_TO_CONTAINER", |c| {
            Box::pin(refused(c, true, MountPropagation::PropagationHostToContainer))
        })
        .spec("should reject a recursive readonly mount with PROPAGATION_BIDIRECTIONAL", |c| {
            Box::pin(refused(c, true, MountPropagation::PropagationBidirectional))
        })
        .spec("should reject a recursive readonly mount with ReadOnly: false", |c| {
            Box::pin(refused(c, false, MountPropagation::PropagationPrivate))
        })
        .done();
    [volumes, propagation, read_only].concat()
}

async fn volume(c: &mut Context, by_symlink: bool) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut dir = c.host_dir("volume")?;
    std::fs::write(dir.join("flag"), "")?;
    if by_symlink {
        let link = dir.with_file_name("link");
        std::os::unix::fs::symlink(&dir, &link)?;
        dir = link;
    }
    let mut config = c.container_config(&[]);
    config.mounts = vec![mount(&dir, &dir)];
    config.mounts[0].selinux_relabel = true;
    let id = c.running_of(&sandbox, config).await?;
    let seen = c.exec(&id, &["ls", "-A", &text(&dir)]).await?;
    ensure!(!seen.is_empty(), "the directory is empty in the container");
    Ok(())
}

async fn propagates(c: &mut Context, how: MountPropagation) -> Result<()> {
    let sandbox = privileged_sandbox(c).await?;
    let source = c.host_dir("source")?;
    std::fs::write(source.join("flag"), "")?;
    let shared = c.host_dir("shared")?;
    let later = shared.join("later");
    std::fs::create_dir_all(&later)?;
    let shared_text = text(&shared);
    c.mount(&["--bind", &shared_text], &shared)?;
    let private = how == MountPropagation::PropagationPrivate;
    let kind = if private { "--make-rprivate" } else { "--make-rshared" };
    c.change_mount(kind, &shared)?;

    let mut config = privileged_container(c);
    config.mounts = vec![mount(&shared, &shared)];
    config.mounts[0].propagation = how as i32;
    let id = c.create(&sandbox, config).await?;
    let told = c.status(&id).await?.mounts;
    ensure!(told.len() == 1, "ContainerStatus tells {told:?}");
    let same = told[0].container_path == shared_text && told[0].host_path == shared_text;
    ensure!(same && !told[0].readonly && told[0].propagation == how as i32, "{:?}", told[0]);
    c.start(&id).await?;
    c.reaches(&id, cri::ContainerState::ContainerRunning).await?;

    c.mount(&["--bind", &text(&source)], &later)?;
    let seen = c.exec(&id, &["ls", "-A", &text(&later)]).await?;
    ensure!(seen.is_empty() == private, "a later mount of the node shows {seen:?}");
    let inner = shared.join("inner");
    let script = format!("mkdir -p {0} && mount --bind /etc {0}", inner.display());
    c.exec(&id, &["sh", "-c", &script]).await?;
    // What the container makes in the directory is there on the node.
    let seen = std::fs::read_dir(&inner).context("what the container made")?.count();
    let both_ways = how == MountPropagation::PropagationBidirectional;
    ensure!((seen != 0) == both_ways, "a mount of the container shows {seen} files on the node");
    Ok(())
}

/// A read-only directory with a file system mounted below it: read-only too only if that is asked for.
async fn read_only(c: &mut Context, recursive: bool) -> Result<()> {
    if recursive {
        skip_without_feature(c).await?;
    }
    let sandbox = privileged_sandbox(c).await?;
    let dir = dir_with_tmpfs(c)?;
    let mut config = c.container_config(&[]);
    config.mounts = vec![mount(&dir, Path::new("/mnt"))];
    config.mounts[0].readonly = true;
    config.mounts[0].recursive_read_only = recursive;
    let id = c.running_of(&sandbox, config).await?;
    let told = c.status(&id).await?.mounts.len();
    ensure!(told == 1, "ContainerStatus tells {told} mounts");
    if !recursive {
        return c.exec(&id, &["touch", "/mnt/tmpfs/file"]).await.map(drop);
    }
    let output = c.exec_fails(&id, &["touch", "/mnt/tmpfs/file"]).await?;
    ensure!(output.stderr.contains("Read-only file system"), "{output:?}");
    Ok(())
}

async fn refused(c: &mut Context, readonly: bool, how: MountPropagation) -> Result<()> {
    skip_without_feature(c).await?;
    let sandbox = privileged_sandbox(c).await?;
    let dir = dir_with_tmpfs(c)?;
    let mut config = c.container_config(&[]);
    config.mounts = vec![mount(&dir, Path::new("/mnt"))];
    config.mounts[0].readonly = readonly;
    config.mounts[0].recursive_read_only = true;
    config.mounts[0].propagation = how as i32;
    c.bring_image(&config).await?;
    let created = c.try_create(&sandbox, config).await;
    ensure!(created.is_err(), "the container was created: {created:?}");
    Ok(())
}

async fn skip_without_feature(c: &mut Context) -> Result<()> {
    let features = c.handler_features().await?;
    if features.recursive_read_only_mounts {
        return Ok(());
    }
    Err(Skip("the handler tells no recursive_read_only_mounts".to_owned()).into())
}

fn dir_with_tmpfs(c: &mut Context) -> Result<PathBuf> {
    let dir = c.host_dir("read-only")?;
    let below = c.host_dir("read-only/tmpfs")?;
    c.mount(&["-t", "tmpfs", "conformance"], &below)?;
    Ok(dir)
}

async fn privileged_sandbox(c: &mut Context) -> Result<Sandbox> {
    let mut config = c.sandbox_config();
    let security = cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(security);
    c.sandbox_of(config).await.context("a privileged sandbox")
}

fn privileged_container(c: &mut Context) -> cri::ContainerConfig {
    let mut config = c.container_config(&[]);
    let security = cri::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(security);
    config
}

fn mount(host: &Path, container: &Path) -> cri::Mount {
    cri::Mount { host_path: text(host), container_path: text(container), ..Default::default() }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
