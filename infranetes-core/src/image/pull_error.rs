//! Why a pull failed: for the person who reads `kubectl describe pod`, and for the program that decides.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::config::EndpointError;
use super::digest::Digest;
use super::manifest::ManifestError;
use super::reference::ReferenceError;

/// A pull that failed. Cheap to clone, because all that waited for the pull get it.
#[derive(Debug, Clone)]
pub struct PullError(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    image: String,
    phase: PullPhase,
    failure: PullFailure,
    /// The endpoints that failed before the one that `failure` is of, and how.
    before: Vec<(String, PullFailure)>,
}

/// What a pull was doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullPhase {
    /// Reading the reference and the configuration.
    Preparing,
    /// Asking for a token.
    Authenticating,
    /// Reading the manifest or index.
    Manifest,
    /// Reading the image's configuration.
    Config,
    /// Reading the layer with this number, of this many; counted from 1.
    Layer(usize, usize),
    /// Recording the image in the store.
    Recording,
}

/// What went wrong, one variant for each thing that a caller may want to treat differently.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullFailure {
    /// The text is no reference.
    #[error("the reference cannot be read")]
    Reference(#[source] ReferenceError),
    /// The registry's configuration cannot be used.
    #[error("the configuration of the registry cannot be used")]
    Endpoint(#[source] EndpointError),
    /// The certificates to trust cannot be read.
    #[error("the certificates to trust for the registry {registry} cannot be read")]
    Certificates {
        /// The endpoint.
        registry: String,
        /// The cause.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// No connection, or it broke before an answer.
    #[error("the registry {registry} cannot be reached; {attempts} attempts were made")]
    Unreachable {
        /// The endpoint.
        registry: String,
        /// How often it was tried.
        attempts: u32,
        /// The cause of the last attempt.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The registry accepted the request and then said nothing for too long.
    #[error("the registry {registry} sent nothing for {}; {attempts} attempts were made", Seconds(*.idle))]
    Stalled {
        /// The endpoint.
        registry: String,
        /// The limit.
        idle: Duration,
        /// How often it was tried.
        attempts: u32,
    },
    /// A blob ended before its end, again and again.
    #[error(
        "the registry {registry} cut the download off after {have} of {size} bytes; \
         {attempts} attempts were made, and the next pull continues from there"
    )]
    CutOff {
        /// The endpoint.
        registry: String,
        /// Bytes that are on disk.
        have: u64,
        /// Bytes of the whole.
        size: u64,
        /// How often it was tried without progress.
        attempts: u32,
    },
    /// 401: credentials are needed, or those given are not accepted.
    #[error("the registry {registry} {}", unauthorized(*.given))]
    Unauthorized {
        /// The endpoint, or the token service that it named.
        registry: String,
        /// Whether the pull had credentials for it.
        given: bool,
    },
    /// 403: who asks is known, or need not be, and may not read the image.
    #[error("the registry {registry} does not allow this pull to read the image (403)")]
    Forbidden {
        /// The endpoint.
        registry: String,
    },
    /// 404: there is no such repository, tag, digest or blob.
    #[error("the registry {registry} has no such image (404)")]
    NotFound {
        /// The endpoint.
        registry: String,
    },
    /// 429: too many requests.
    #[error("the registry {registry} limits requests (429){}", retry_advice(*.retry_after))]
    Throttled {
        /// The endpoint.
        registry: String,
        /// How long the registry wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// 5xx: the registry has a problem of its own.
    #[error(
        "the registry {registry} has a problem of its own ({status}); {attempts} attempts were made"
    )]
    RegistryFault {
        /// The endpoint.
        registry: String,
        /// The status of its answer.
        status: u16,
        /// How often it was tried.
        attempts: u32,
    },
    /// An answer that the distribution protocol does not have.
    #[error("the registry {registry} does not speak the distribution protocol: {why}")]
    Protocol {
        /// The endpoint.
        registry: String,
        /// What was wrong with the answer.
        why: String,
    },
    /// The content is not what its digest says.
    #[error(
        "the registry {registry} sent content with the digest {got} instead of {expected}; it was discarded"
    )]
    WrongDigest {
        /// The endpoint.
        registry: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// The content is larger than it may be, or than its descriptor says.
    #[error(
        "the registry {registry} sent more than the {limit} bytes that are accepted; it was discarded"
    )]
    TooLarge {
        /// The endpoint.
        registry: String,
        /// The limit.
        limit: u64,
    },
    /// The documents make no image that can be run here.
    #[error("the image cannot be used")]
    Unusable(#[source] ManifestError),
    /// The file system of the store is full.
    #[error("the disk of the image store, {}, is full", .root.display())]
    DiskFull {
        /// The directory of the store.
        root: PathBuf,
    },
    /// The store cannot be read or written.
    #[error("the image store, {}, cannot be used", .root.display())]
    Disk {
        /// The directory of the store.
        root: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The pull as a whole took too long.
    #[error("the pull took longer than {}; what arrived is kept, and the next pull continues from there", Seconds(*.limit))]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
}

impl PullError {
    pub(crate) fn new(
        image: impl Into<String>,
        phase: PullPhase,
        failure: PullFailure,
    ) -> PullError {
        PullError::after(Vec::new(), image, phase, failure)
    }

    /// A pull that failed at several endpoints; `failure` is the one of the registry itself.
    pub(crate) fn after(
        before: Vec<(String, PullFailure)>,
        image: impl Into<String>,
        phase: PullPhase,
        failure: PullFailure,
    ) -> PullError {
        PullError(Arc::new(Inner { image: image.into(), phase, failure, before }))
    }

    /// What went wrong, at the endpoint that was tried last: the registry itself.
    pub fn failure(&self) -> &PullFailure {
        &self.0.failure
    }

    /// What the pull was doing.
    pub fn phase(&self) -> &PullPhase {
        &self.0.phase
    }
}

impl PullFailure {
    /// Whether the same pull may well succeed later, without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            PullFailure::Unreachable { .. }
                | PullFailure::Stalled { .. }
                | PullFailure::CutOff { .. }
                | PullFailure::Throttled { .. }
                | PullFailure::RegistryFault { .. }
                | PullFailure::TimedOut { .. }
        )
    }

    /// Whether no other registry could do better.
    pub(crate) fn is_of_this_node(&self) -> bool {
        matches!(self, PullFailure::DiskFull { .. } | PullFailure::Disk { .. })
    }

    pub(crate) fn of_disk(root: impl Into<PathBuf>, error: io::Error) -> PullFailure {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                PullFailure::DiskFull { root: root.into() }
            }
            _ => PullFailure::Disk { root: root.into(), source: Arc::new(error) },
        }
    }
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { image, phase, failure, before } = &*self.0;
        write!(f, "cannot pull {image} ({phase}): {failure}")?;
        for (number, (endpoint, failure)) in before.iter().enumerate() {
            let separator = if number == 0 { "; tried before: " } else { ", " };
            write!(f, "{separator}{endpoint} ({failure})")?;
        }
        Ok(())
    }
}

impl Error for PullError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.failure.source()
    }
}

impl fmt::Display for PullPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PullPhase::Preparing => f.write_str("preparing"),
            PullPhase::Authenticating => f.write_str("authenticating"),
            PullPhase::Manifest => f.write_str("reading the manifest"),
            PullPhase::Config => f.write_str("reading the configuration"),
            PullPhase::Layer(number, all) => write!(f, "reading layer {number} of {all}"),
            PullPhase::Recording => f.write_str("recording the image"),
        }
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs_f32())
    }
}

fn unauthorized(given: bool) -> &'static str {
    if given {
        "does not accept the credentials of the pull (401): check the pod's imagePullSecrets"
    } else {
        "wants credentials and the pull has none for it (401): the image may not exist, or need an \
         imagePullSecret"
    }
}

fn retry_advice(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!(" and wants to be left alone for {}", Seconds(wait)),
        None => " and does not say for how long".to_owned(),
    }
}
