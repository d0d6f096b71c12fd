//! Bad input, and what it gets: through CRI, on the real daemon.
//!
//! What one crate refuses by itself is tested there (plugins in `sdk/loader`, registries in `infranetes-core`, enrolment in
//! `infranetes-agent`, configuration and sockets in `infranetes-cri`).

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::container;
use infranetes_tests::footprint::processes_with;
use infranetes_tests::image::TestImage;
use infranetes_tests::{registry::Registry, stuck_kernel};
use tonic::{Code, Status};

#[tokio::test]
async fn images_that_cannot_be_had_are_refused_by_name() -> Result<()> {
    case::run("process", async |case| {
        let open = case.registry.host();
        TestImage::busybox()?.for_architecture("s390x").push(&open, "foreign", "1").await?;
        // user "user", password "right", by `htpasswd -B`.
        let closed = Registry::start_with_htpasswd(HTPASSWD).await?;
        case.allow_plain_http(&[&open, &closed.host(), NOBODY]).await?;
        for (image, password, code, words) in [
            (format!("{open}/nothing:1"), None, Code::NotFound, "nothing"),
            (format!("{open}/foreign:1"), None, Code::FailedPrecondition, "s390x"),
            (format!("{}/any:1", closed.host()), None, Code::PermissionDenied, "any"),
            (format!("{}/any:1", closed.host()), Some("wrong"), Code::PermissionDenied, "any"),
            (format!("{}/any:1", closed.host()), Some("right"), Code::NotFound, "any"),
            (format!("{NOBODY}/any:1"), None, Code::Unavailable, NOBODY),
            ("not an image".to_owned(), None, Code::InvalidArgument, "image"),
        ] {
            let auth = password.map(|password| cri::AuthConfig {
                username: "user".to_owned(),
                password: password.to_owned(),
                ..Default::default()
            });
            let spec = cri::ImageSpec { image: image.clone(), ..Default::default() };
            let request = cri::PullImageRequest { image: Some(spec), auth, ..Default::default() };
            let refused = case.client().images.pull_image(request).await.err();
            expect(&image, refused, code, &[words])?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_unknown_handler_and_an_unpulled_image_are_refused_by_name() -> Result<()> {
    case::run("process", async |case| {
        let mut client = case.client();
        let mut stranger = case.pod("stranger");
        stranger.handler = "no-such-handler".to_owned();
        let refused = client.run_pod(&stranger).await.err();
        expect("handler", refused, Code::InvalidArgument, &["no-such-handler"])?;

        let pod = case.pod("pod");
        let sandbox = client.run_pod(&pod).await?;
        let config = container("c", &format!("{}/never-pulled:1", case.registry.host()), &["sh"]);
        let refused = client.create_container(&sandbox, &pod, config).await.err();
        expect("image", refused, Code::NotFound, &["never-pulled"])
    })
    .await
}

#[tokio::test]
async fn qemu_that_is_not_installed_is_named() -> Result<()> {
    case::run("qemu", async |case| {
        let config = case.node.qemu_config("qemu = \"/no/such/qemu\"\n");
        case.reconfigure_provider("qemu", &config).await?;
        let refused = case.client().run_pod(&case.pod("pod")).await.err();
        let refused = refused.context("a pod ran without QEMU")?;
        ensure!(refused.message().contains("/no/such/qemu"), "{refused:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_kernel_that_hangs_is_told_with_its_phase_and_last_lines() -> Result<()> {
    case::run("qemu", async |case| {
        let kernel = case.node.path("stuck");
        std::fs::write(&kernel, stuck_kernel::elf())?;
        let initramfs = case.guest("initramfs");
        case.hangs(&kernel, &initramfs, stuck_kernel::LAST_WORDS).await
    })
    .await
}

#[tokio::test]
async fn an_agent_that_never_enrols_is_told_with_its_phase_and_last_lines() -> Result<()> {
    case::run("qemu", async |case| {
        let (kernel, initramfs) = (case.guest("vmlinux"), case.guest("bare-initramfs"));
        case.hangs(&kernel, &initramfs, "infranetes-bare-ready").await
    })
    .await
}

#[tokio::test]
async fn a_full_state_disk_starts_nothing_and_says_so() -> Result<()> {
    case::run("process", async |case| {
        let disk = case.put_state_on_a_small_disk().await?;
        let filler = disk.fill()?;
        let refused = case.client().run_pod(&case.pod("pod")).await.err();
        let refused = refused.context("a pod ran although nothing could be recorded")?;
        ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
        ensure!(refused.message().contains("full"), "{refused:?}");
        let machines = processes_with(&case.node.dir().display().to_string());
        let machines: Vec<_> =
            machines.into_iter().filter(|(_, line)| line.contains("infranetes-agent")).collect();
        ensure!(machines.is_empty(), "{machines:?}");
        std::fs::remove_file(filler)?;
        // Room again: the next attempt wins.
        case.client().run_pod(&case.pod("pod")).await?;
        Ok(())
    })
    .await
}

trait Refusals {
    async fn hangs(
        &mut self,
        kernel: &std::path::Path,
        initramfs: &std::path::Path,
        last: &str,
    ) -> Result<()>;
}

impl Refusals for Case {
    async fn hangs(
        &mut self,
        kernel: &std::path::Path,
        initramfs: &std::path::Path,
        last: &str,
    ) -> Result<()> {
        self.node.write_config(
            "[handlers.qemu]\nprovider = \"qemu\"\n[handlers.qemu.timeouts]\nenrol = \"10s\"\n",
        )?;
        let config =
            format!("kernel = \"{}\"\ninitramfs = \"{}\"\n", kernel.display(), initramfs.display());
        self.reconfigure_provider("qemu", &config).await?;
        let asked = std::time::Instant::now();
        let refused = self.client().run_pod(&self.pod("pod")).await.err();
        let refused = refused.context("a pod ran without an agent")?;
        ensure!(asked.elapsed().as_secs() < 40, "it took {:?}", asked.elapsed());
        ensure!(refused.message().contains("its agent enrolled"), "{refused:?}");
        ensure!(refused.message().contains(last), "{refused:?}");
        Ok(())
    }
}

fn expect(subject: &str, refused: Option<Status>, code: Code, words: &[&str]) -> Result<()> {
    let refused = refused.with_context(|| format!("{subject}: was not refused"))?;
    ensure!(refused.code() == code, "{subject}: {refused:?}");
    for word in words {
        ensure!(refused.message().contains(word), "{subject}: {word:?} is not in {refused:?}");
    }
    Ok(())
}

/// A loopback port that nothing listens on: the discard service's.
const NOBODY: &str = "127.0.0.1:9";
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuu8xaCxxL82bnl.UY74PMksDxIJShppPC\n";
