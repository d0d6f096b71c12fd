//! The public suite itself, critest, run on the same daemon with the same images: the judge of our specs.
//!
//! A built critest is given; nothing is fetched. One thing of it is changed, in a copy: it pins the digest of an image of a
//! public registry, and here stands the digest of the one that takes its place. Its findings are told by the names that our specs have.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tokio::process::Command;

use super::runner::Finding;
use super::spec::{MARK, Verdict};

/// What one run of it needs.
pub(super) struct Critest<'a> {
    /// The built program.
    pub(super) program: &'a Path,
    /// A directory of the run.
    pub(super) dir: &'a Path,
    /// Where the daemon listens.
    pub(super) socket: &'a Path,
    /// The manifest digest of the image that is pulled by digest.
    pub(super) digest: &'a str,
    /// Whether it may say what it does.
    pub(super) verbose: bool,
}

impl Critest<'_> {
    /// Runs the specs that have one of these texts in their names, all if there is none; `wanted` are the names of those.
    pub(super) async fn run(
        &self,
        texts: &[String],
        wanted: &BTreeSet<String>,
    ) -> Result<Vec<Finding>> {
        let program = self.with_our_digest()?;
        let report = self.dir.join("critest.json");
        let mut command = Command::new(program);
        command.arg("--runtime-endpoint").arg(format!("unix://{}", self.socket.display()));
        command.args(["--ginkgo.no-color", "--ginkgo.skip", "AppArmor|NRI"]);
        command.arg("--ginkgo.json-report").arg(&report);
        for text in texts {
            command.args(["--ginkgo.focus", &escaped(text)]);
        }
        let output = || if self.verbose { Stdio::inherit() } else { Stdio::null() };
        command.current_dir(self.dir).stdin(Stdio::null()).stdout(output()).stderr(output());
        let mut child = command.kill_on_drop(true).spawn().context("critest does not run")?;
        let ended = tokio::time::timeout(LIMIT, child.wait()).await;
        let status = ended.with_context(|| format!("critest took more than {LIMIT:?}"))??;
        // It ends with 1 if a spec failed.
        let text = std::fs::read(&report)
            .with_context(|| format!("critest ended with {status} and left no report"))?;
        let suites: Vec<Suite> = serde_json::from_slice(&text).context("critest's report")?;
        let specs = suites.into_iter().flat_map(|suite| suite.specs);
        let mut findings: Vec<Finding> = specs
            .filter(|spec| spec.kind == "It")
            .map(SpecReport::finding)
            .filter(|finding| {
                // Those that it was told to leave out have no reason.
                let told =
                    matches!(&finding.verdict, Verdict::Skipped(reason) if reason.is_empty());
                !told && (texts.is_empty() || wanted.contains(&finding.name))
            })
            .collect();
        findings.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(findings)
    }

    fn with_our_digest(&self) -> Result<std::path::PathBuf> {
        let path = self.program;
        let mut program = std::fs::read(path).with_context(|| path.display().to_string())?;
        replace_digest(&mut program, self.digest)?;
        let copy = self.dir.join("critest");
        std::fs::write(&copy, program)?;
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
        Ok(copy)
    }
}

/// Puts `digest` in the place of each that is pinned.
fn replace_digest(program: &mut [u8], digest: &str) -> Result<()> {
    let windows = program.windows(PINNED.len()).enumerate();
    let places: Vec<usize> =
        windows.filter(|(_, bytes)| *bytes == PINNED).map(|(place, _)| place).collect();
    ensure!(
        !places.is_empty(),
        "critest pins no image of that name by digest: it is another version"
    );
    for place in places {
        let start = place + PINNED.len() - ALGORITHM.len();
        let pinned = program.get_mut(start..start + digest.len());
        pinned.context("critest ends within a digest")?.copy_from_slice(digest.as_bytes());
    }
    Ok(())
}

/// As a regular expression that matches this text.
fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    // Levels are parted by a space there.
    for letter in text.replace(" > ", " ").chars() {
        if !letter.is_alphanumeric() && letter != ' ' {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// What Ginkgo reports, as far as it is of interest.
#[derive(Deserialize)]
struct Suite {
    #[serde(rename = "SpecReports")]
    specs: Vec<SpecReport>,
}

#[derive(Deserialize)]
struct SpecReport {
    #[serde(rename = "ContainerHierarchyTexts")]
    groups: Option<Vec<String>>,
    #[serde(rename = "LeafNodeType")]
    kind: String,
    #[serde(rename = "LeafNodeText")]
    text: String,
    #[serde(rename = "State")]
    state: String,
    #[serde(rename = "RunTime")]
    nanos: u64,
    #[serde(rename = "Failure", default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
struct Failure {
    #[serde(rename = "Message", default)]
    message: String,
}

impl SpecReport {
    fn finding(self) -> Finding {
        let mut levels = self.groups.unwrap_or_default();
        levels.push(self.text);
        let name = levels.join(" > ").replace("[k8s.io] ", "");
        let verdict = match self.state.as_str() {
            "passed" => Verdict::Pass,
            "skipped" | "pending" => Verdict::Skipped(self.failure.message),
            state => Verdict::Fail(format!("{state}: {}", self.failure.message)),
        };
        Finding {
            conformance: name.contains(MARK),
            name,
            verdict,
            seconds: Duration::from_nanos(self.nanos).as_secs_f64(),
        }
    }
}

const PINNED: &[u8] = b"/test-image-digest@sha256:";
const ALGORITHM: &str = "sha256:";
/// All its specs run one after another, in machines that may be emulated.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_digest_of_the_image_that_is_stood_for_is_replaced() {
        let (theirs, ours) = ("a".repeat(64), "b".repeat(64));
        let text = |digest: &str| {
            format!("x/test-image-digest@sha256:{digest}y/win-test-image-digest@sha256:{theirs}")
        };
        let mut program = text(&theirs).into_bytes();
        replace_digest(&mut program, &format!("sha256:{ours}")).unwrap();
        assert_eq!(String::from_utf8(program).unwrap(), text(&ours));
        assert!(replace_digest(&mut b"nothing".to_vec(), &format!("sha256:{ours}")).is_err());
    }

    #[test]
    fn its_report_is_told_by_our_names() {
        let text = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed", "RunTime": 1},
            {"ContainerHierarchyTexts": ["[k8s.io] Container", "runtime should support log"], "LeafNodeType": "It",
             "LeafNodeText": "starts [Conformance]", "State": "timedout", "RunTime": 2500000000, "Failure": {"Message": "why"}}]}]"#;
        let suites: Vec<Suite> = serde_json::from_str(text).unwrap();
        let specs = suites.into_iter().flat_map(|suite| suite.specs);
        let finding = specs.last().unwrap().finding();
        assert_eq!(finding.name, "Container > runtime should support log > starts [Conformance]");
        assert!(finding.conformance && (finding.seconds - 2.5).abs() < 1e-9);
        assert_eq!(finding.verdict, Verdict::Fail("timedout: why".to_owned()));
    }

    #[test]
    fn a_filter_means_its_letters() {
        assert_eq!(escaped("a > b.c [Conformance]"), "a b\\.c \\[Conformance\\]");
    }
}
