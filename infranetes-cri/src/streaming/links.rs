//! Links that work once: what each is for, until it is used or a minute is over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use infranetes_core::ids::{ContainerId, SandboxId};
use infranetes_core::session::duplex::ExecStart;
use tokio::time::Instant;

/// What a link is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A command.
    Exec {
        /// The command.
        start: ExecStart,
        /// Which of its outputs the client wants.
        outputs: Outputs,
    },
    /// A container's own streams.
    Attach {
        /// The container.
        container: ContainerId,
        /// The client brings input.
        stdin: bool,
        /// The container has a terminal.
        tty: bool,
        /// Which of its outputs the client wants.
        outputs: Outputs,
    },
    /// Connections to ports.
    PortForward {
        /// The sandbox.
        sandbox: SandboxId,
        /// Ports that the client named beforehand; SPDY names them later.
        ports: Vec<u16>,
    },
}

/// Outputs that a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// Standard output, or the terminal.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl Target {
    fn path(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The table of links. Cheap to clone; all clones are one table.
#[derive(Clone)]
pub struct Links {
    base: Arc<str>,
    table: Arc<Mutex<HashMap<String, Link>>>,
}

struct Link {
    target: Target,
    until: Instant,
}

/// There is no room for another link.
#[derive(Debug, thiserror::Error)]
#[error("{LINKS_MAX} streaming links were asked for within a minute and not used")]
pub struct TooManyLinks;

impl Links {
    pub(super) fn new(base: String) -> Self {
        Self { base: base.into(), table: Arc::default() }
    }

    /// A link to `target`.
    pub fn make(&self, target: Target) -> Result<String, TooManyLinks> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= LINKS_MAX {
            let now = Instant::now();
            table.retain(|_, link| link.until > now);
        }
        if table.len() >= LINKS_MAX {
            return Err(TooManyLinks);
        }
        let token = token();
        let url = format!("{}/{}/{token}", self.base, target.path());
        table.insert(token, Link { target, until: Instant::now() + LIFE });
        Ok(url)
    }

    /// What the link with this path is for, once.
    pub(super) fn take(&self, path: &str) -> Option<Target> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.get(token).is_none_or(|link| link.target.path() != kind) {
            return None;
        }
        let link = table.remove(token)?;
        (link.until > Instant::now()).then_some(link.target)
    }
}

/// 128 random bits, as the kernel gives them.
fn token() -> String {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        // Only an interrupted call gives less, and it is repeated.
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                .unwrap_or(0);
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The kubelet uses a link at once.
const LIFE: Duration = Duration::from_secs(60);
const LINKS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::PortForward { sandbox: SandboxId::from_random([1; 32]), ports: vec![80] }
    }

    fn path(url: &str) -> String {
        url.strip_prefix("http://127.0.0.1:1").unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_works_once_and_for_a_minute() {
        let links = Links::new("http://127.0.0.1:1".to_owned());
        let first = path(&links.make(target()).unwrap());
        let second = path(&links.make(target()).unwrap());
        assert_ne!(first, second);
        assert_eq!(first.len(), "/portforward/".len() + 32);
        for wrong in ["", "/", "/portforward/", "/exec/x", &first.replace("portforward", "exec")] {
            assert_eq!(links.take(wrong), None, "{wrong}");
        }
        assert_eq!(links.take(&first), Some(target()));
        assert_eq!(links.take(&first), None);
        tokio::time::advance(LIFE).await;
        assert_eq!(links.take(&second), None);
    }

    #[tokio::test(start_paused = true)]
    async fn links_that_nobody_uses_do_not_pile_up() {
        let links = Links::new("http://127.0.0.1:1".to_owned());
        for _ in 0..LINKS_MAX {
            links.make(target()).unwrap();
        }
        assert!(links.make(target()).is_err());
        tokio::time::advance(LIFE).await;
        links.make(target()).unwrap();
        assert_eq!(links.table.lock().unwrap().len(), 1);
    }
}
