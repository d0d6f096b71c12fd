//! Plugins that fail, and plugins in processes of their own, on the real daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_loader::sha256_of;
use infranetes_loader::signature::{SecretKey, Signature};
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::{Client, container};
use infranetes_tests::footprint::processes_with;
use infranetes_tests::node::Programs;
use infranetes_tests::wait::until;
use object::{Object, ObjectSection};

#[tokio::test]
async fn a_crash_of_a_plugin_in_its_own_process_leaves_the_daemon_and_its_pods() -> Result<()> {
    case::run("process", async |case| {
        let plugin = Plugin::isolate(case, "process")?;
        case.restart_hard().await?;
        let mut client = case.client();
        client.pull(&case.image).await?;
        let pod = case.pod("pod");
        let sandbox = client.run_pod(&pod).await?;
        let sleeper = container("c", &case.image, &["sleep", "600"]);
        let id = client.run_container(&sandbox, &pod, sleeper).await?;

        // Without its file it does not come back, which a person has to see.
        plugin.hide()?;
        let first = plugin.process(case).await?;
        kill(first)?;
        let mut seen = String::new();
        until(LIMIT, "the handler is not ready", async || {
            seen = problem(&mut case.client(), "process").await?;
            Ok(seen.contains("cannot open the plugin"))
        })
        .await
        .with_context(|| seen.clone())?;
        let said = client.exec(&id, &["echo", "still here"]).await?;
        ensure!(said.stdout == b"still here\n", "the container is not reachable");
        let refused = client.run_pod(&case.pod("other")).await.err();
        let refused = refused.context("a pod ran without its provider")?;
        ensure!(refused.message().contains("cannot open the plugin"), "{refused:?}");

        plugin.show()?;
        until(LIMIT, "the handler is ready again", async || {
            Ok(problem(&mut case.client(), "process").await?.is_empty())
        })
        .await?;
        ensure!(plugin.process(case).await? != first, "it is another process");
        let other = client.run_pod(&case.pod("another")).await?;
        client.remove_pod(&other).await?;
        client.remove_pod(&sandbox).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_process_of_a_plugin_ends_with_the_daemon_however_that_ends() -> Result<()> {
    case::run("process", async |case| {
        let plugin = Plugin::isolate(case, "process")?;
        case.restart_hard().await?;
        let first = plugin.process(case).await?;
        case.restart_hard().await?;
        until(LIMIT, "the killed daemon's helper ends", async || Ok(!lives(first))).await?;
        let second = plugin.process(case).await?;
        case.daemon.terminate()?;
        case.daemon.wait().await?;
        until(LIMIT, "the helper ends with its daemon", async || Ok(!lives(second))).await?;
        case.restart_hard().await
    })
    .await
}

#[tokio::test]
async fn a_plugin_that_does_not_load_makes_its_handlers_not_ready_and_no_others() -> Result<()> {
    case::run("process", async |case| {
        let directory = case.node.path("providers.d");
        let good = Programs::from_env()?.bin.join("libinfranetes_provider_fake.so");
        let broken = case.node.path("broken.so");
        fs::write(&broken, with_broken_code(&good)?)?;
        let text = case.node.path("text.so");
        fs::write(&text, "no library")?;
        let zeros = "0".repeat(64);
        let good_file = &good;
        let good = good.display();
        for (name, file) in [
            ("text", format!("plugin = \"{}\"\n", text.display())),
            ("missing", "plugin = \"/no/such.so\"\n".to_owned()),
            ("broken", format!("plugin = \"{}\"\n", broken.display())),
            ("apart", format!("plugin = \"{}\"\nisolation = \"process\"\n", broken.display())),
            ("pinned", format!("plugin = \"{good}\"\nsha256 = \"{zeros}\"\n")),
            ("config", format!("plugin = \"{good}\"\n[config]\nno_such_key = 1\n")),
            (
                "own",
                format!(
                    "plugin = \"{good}\"\nisolation = \"process\"\n[config]\nno_such_key = 1\n"
                ),
            ),
        ] {
            fs::write(directory.join(format!("{name}.toml")), file)?;
        }
        let registry = case.registry.host();
        let names =
            ["process", "text", "missing", "broken", "apart", "pinned", "config", "own", "absent"];
        let handlers = names.map(|name| format!("[handlers.{name}]\nprovider = \"{name}\"\n"));
        let images = format!("[images.registries.\"{registry}\"]\nurl = \"http://{registry}\"\n");
        case.node.write_config(&(handlers.concat() + &images))?;
        case.restart_hard().await?;

        let mut client = case.client();
        for (name, expected) in [
            ("text", "text.so is not a shared library"),
            ("missing", "cannot open the plugin /no/such.so"),
            ("broken", "broken.so was tried out in a child process, which ended with signal"),
            ("apart", "broken.so was ended by signal"),
            ("pinned", "the configuration pins 0000"),
            ("config", "unknown field `no_such_key`"),
            ("own", "unknown field `no_such_key`"),
            ("absent", "absent.toml is missing"),
        ] {
            let problem = problem(&mut client, name).await?;
            ensure!(problem.contains(expected), "{name}: {problem}");
            let pod = infranetes_tests::client::Pod { handler: name.to_owned(), ..case.pod(name) };
            let refused = client.run_pod(&pod).await.err().context("a pod ran")?;
            ensure!(refused.message().contains(expected), "{name}: {refused:?}");
        }
        ensure!(problem(&mut client, "process").await?.is_empty(), "the good one is ready");
        // What has a process of its own is tried again, and found when it is good.
        fs::copy(good_file, case.node.path("good.so"))?;
        fs::rename(case.node.path("good.so"), &broken)?;
        until(LIMIT, "the plugin in its own process is found again", async || {
            Ok(problem(&mut case.client(), "apart").await?.is_empty())
        })
        .await?;
        ensure!(!problem(&mut client, "broken").await?.is_empty(), "the other needs a restart");
        let status = client.runtime.status(cri::StatusRequest::default()).await?.into_inner();
        let ready = status.status.unwrap_or_default().conditions.into_iter();
        ensure!(ready.filter(|it| it.r#type == "RuntimeReady").all(|it| it.status), "the node is");
        let sandbox = client.run_pod(&case.pod("pod")).await?;
        Ok(client.remove_pod(&sandbox).await?)
    })
    .await
}

/// The line with the plugin, and all the rest.
fn split_instance(text: &str) -> Result<(String, String)> {
    let (plugin, rest) = text.split_once("\n").context("an instance's file has lines")?;
    Ok((plugin.to_owned(), rest.to_owned()))
}

#[tokio::test]
async fn where_keys_are_trusted_only_signed_plugins_run() -> Result<()> {
    case::run("process", async |case| {
        let plugin = Plugin::isolate(case, "process")?;
        let key = SecretKey::generate()?;
        let registry = case.registry.host();
        case.node.write_config(&format!(
            "[handlers.process]\nprovider = \"process\"\n[plugins]\ntrusted_keys = [\"{}\"]\n\
             [images.registries.\"{registry}\"]\nurl = \"http://{registry}\"\n",
            key.public()
        ))?;
        case.restart_hard().await?;
        let problem_now = problem(&mut case.client(), "process").await?;
        ensure!(problem_now.contains("process.so is not signed"), "{problem_now}");
        let signature = key.sign(&sha256_of(&fs::read(&plugin.file)?));
        fs::write(Signature::path_of(&plugin.file), signature.to_string())?;
        case.restart_hard().await?;
        let mut client = case.client();
        let problem_now = problem(&mut client, "process").await?;
        ensure!(problem_now.is_empty(), "{problem_now}");
        let sandbox = client.run_pod(&case.pod("pod")).await?;
        Ok(client.remove_pod(&sandbox).await?)
    })
    .await
}

/// All instructions are replaced by ones that trap, so that the first that runs inside `dlopen` ends the process.
fn with_broken_code(plugin: &Path) -> Result<Vec<u8>> {
    let mut data = fs::read(plugin)?;
    let file = object::File::parse(&*data)?;
    let code = file.sections().filter(|section| section.kind() == object::SectionKind::Text);
    let ranges: Vec<_> = code.filter_map(|section| section.file_range()).collect();
    for (start, length) in ranges {
        let start = usize::try_from(start)?;
        // On x86-64 this is `hlt`, and no valid instruction anywhere else we build for.
        data[start..start + usize::try_from(length)?].fill(0xf4);
    }
    Ok(data)
}

/// A provider's plugin in a process of its own, from a file of its own.
struct Plugin {
    file: PathBuf,
}

impl Plugin {
    fn isolate(case: &Case, name: &str) -> Result<Plugin> {
        let file = case.node.path(&format!("{name}.so"));
        fs::copy(
            case.node.programs().bin.join(format!("libinfranetes_provider_{name}.so")),
            &file,
        )?;
        let instance = case.node.path("providers.d").join(format!("{name}.toml"));
        let text = fs::read_to_string(&instance)?;
        let (_, config) = split_instance(&text)?;
        let own = format!("plugin = \"{}\"\nisolation = \"process\"\n", file.display());
        fs::write(instance, own + &config)?;
        Ok(Plugin { file })
    }

    fn hide(&self) -> Result<()> {
        Ok(fs::rename(&self.file, self.file.with_extension("away"))?)
    }

    fn show(&self) -> Result<()> {
        Ok(fs::rename(self.file.with_extension("away"), &self.file)?)
    }

    /// The process of the node's daemon's plugin.
    async fn process(&self, case: &Case) -> Result<u32> {
        let daemon = case.daemon.pid().context("the daemon runs")?;
        let mut found = None;
        until(LIMIT, "the plugin's process runs", async || {
            let helpers = processes_with(" plugin host ").into_iter().map(|(pid, _)| pid);
            found = helpers.into_iter().find(|pid| parent(*pid) == Some(daemon));
            Ok(found.is_some())
        })
        .await?;
        found.context("it was found")
    }
}

/// Why a handler is not ready; empty if it is.
async fn problem(client: &mut Client, handler: &str) -> Result<String> {
    let status = client.runtime.status(cri::StatusRequest::default()).await?.into_inner();
    let conditions = status.status.unwrap_or_default().conditions;
    let name = format!("HandlerReady:{handler}");
    let condition = conditions.into_iter().find(|condition| condition.r#type == name);
    let condition = condition.with_context(|| format!("no condition {name}"))?;
    ensure!(condition.status == condition.message.is_empty(), "{condition:?}");
    Ok(condition.message)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn lives(pid: u32) -> bool {
    parent(pid).is_some()
}

fn kill(pid: u32) -> Result<()> {
    let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
    ensure!(killed.success(), "cannot kill {pid}");
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(60);
