//! Images mounted into containers.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;
use tonic::Code;

use super::tagged;
use crate::conformance::context::{Context, Sandbox, image_spec};
use crate::conformance::spec::{Group, Lane, Skip, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let whole = Group::new("Image Volume [Feature:ImageVolume]")
        .lane(Lane::Images)
        .spec("should return image digest in ContainerStatus mounts", |c| Box::pin(digest(c)))
        .spec("should correctly mount image and enforce read-only", |c| Box::pin(read_only(c)))
        .spec("should reject Image Volume with Readonly set to false", |c| {
            Box::pin(refused(c, |mount| mount.readonly = false))
        })
        .done();
    let part = Group::new("Image Volume [Feature:ImageVolume] > subPath")
        .lane(Lane::Images)
        .spec("should succeed when using a valid subPath", |c| Box::pin(sub_path(c)))
        .spec("should fail when subPath does not exist in the image", |c| {
            Box::pin(refused(c, |mount| mount.image_sub_path = "not-existing".to_owned()))
        })
        .done();
    [whole, part].concat()
}

async fn digest(c: &mut Context) -> Result<()> {
    let volume = Volume::prepare(c).await?;
    let id = volume.create(c).await?;
    let mounts = c.status(&id).await?.mounts;
    let mount = mounts.iter().find(|mount| mount.container_path == PLACE);
    let told = mount.and_then(|mount| mount.image.clone()).unwrap_or_default().image_ref;
    if told.is_empty() {
        return Err(Skip(format!("ContainerStatus tells no image_ref: {mounts:?}")).into());
    }
    ensure!(told == volume.image, "it tells {told}, PullImage {}", volume.image);
    Ok(())
}

async fn read_only(c: &mut Context) -> Result<()> {
    let id = Volume::prepare(c).await?.create(c).await?;
    c.start(&id).await?;
    c.exec(&id, &["ls", "-A", &format!("{PLACE}/bin/sh")]).await?;
    c.exec_fails(&id, &["touch", &format!("{PLACE}/new")]).await?;
    // It is no "noexec" mount.
    let program = format!("{PLACE}/bin/busybox");
    c.exec(&id, &[&program, "ls", PLACE]).await.map(drop)
}

async fn sub_path(c: &mut Context) -> Result<()> {
    let mut volume = Volume::prepare(c).await?;
    volume.mount.image_sub_path = "etc".to_owned();
    let id = volume.create(c).await?;
    c.start(&id).await?;
    c.exec(&id, &["ls", &format!("{PLACE}/passwd")]).await?;
    c.exec_fails(&id, &["ls", &format!("{PLACE}/etc/passwd")]).await.map(drop)
}

async fn refused(c: &mut Context, change: fn(&mut cri::Mount)) -> Result<()> {
    let mut volume = Volume::prepare(c).await?;
    change(&mut volume.mount);
    let created = volume.try_create(c).await?;
    ensure!(created.is_err(), "the container was created: {created:?}");
    Ok(())
}

/// A container in the making, with an image mounted read-only.
struct Volume {
    sandbox: Sandbox,
    /// What PullImage answered.
    image: String,
    mount: cri::Mount,
}

impl Volume {
    async fn prepare(c: &mut Context) -> Result<Volume> {
        let image = c.pull(&tagged()).await?;
        let sandbox = c.sandbox().await?;
        let mount = cri::Mount {
            container_path: PLACE.to_owned(),
            readonly: true,
            image: Some(spec(&image)),
            ..Default::default()
        };
        Ok(Volume { sandbox, image, mount })
    }

    async fn create(&self, c: &mut Context) -> Result<String> {
        self.try_create(c).await?.context("CreateContainer failed")
    }

    /// Without image volumes at all, the spec is skipped.
    async fn try_create(&self, c: &mut Context) -> Result<Result<String, tonic::Status>> {
        let mut config = c.container_config(&[]);
        config.image = Some(spec(&self.image));
        config.mounts.push(self.mount.clone());
        match c.try_create(&self.sandbox, config).await {
            Err(status) if status.code() == Code::Unimplemented => {
                Err(Skip(format!("no image volumes: {}", status.message())).into())
            }
            other => Ok(other),
        }
    }
}

fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { user_specified_image: tagged(), ..image_spec(image) }
}

const PLACE: &str = "/mnt/image-volume";
