//! Why a plugin is refused: one variant for each step, in the order of the steps.

use std::path::PathBuf;
use std::time::Duration;

use infranetes_sdk::ProviderError;
use infranetes_sdk::bridge::{self, abi};

use crate::manifest::{Manifest, major};
use crate::signature::SignatureError;

/// A refusal. The message names the file, what was expected, what was found, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It is not there, or may not be opened.
    #[error("cannot open the plugin {path}; check `plugin` in the provider's configuration", path = path.display())]
    Open {
        /// The plugin.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A directory, a pipe, a device.
    #[error("{path} is {found}, not a regular file; `plugin` has to name the .so file itself", path = path.display())]
    NotRegular {
        /// The plugin.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Somebody else owns the file or a directory above it.
    #[error(
        "{path} is owned by uid {uid}; it must belong to root or to the user of this process: `chown root {path}`",
        path = path.display()
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Somebody else may write the file or a directory above it.
    #[error(
        "{path} can be written by others (mode {mode:o}); `chmod go-w {path}` takes that right away",
        path = path.display()
    )]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Larger than any plugin.
    #[error(
        "{path} has {bytes} bytes, more than the {limit} that a plugin may have; build it without debugging symbols \
         (strip = true)",
        path = path.display()
    )]
    TooLarge {
        /// The plugin.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It cannot be read to its end.
    #[error("cannot read the plugin {path}", path = path.display())]
    Read {
        /// The plugin.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not the file that the configuration pins.
    #[error(
        "{path} has the SHA-256 digest {found}, the configuration pins {expected}; install the right file, or change \
         `sha256` if this one is wanted",
        path = path.display()
    )]
    Digest {
        /// The plugin.
        path: PathBuf,
        /// What the configuration says, as it says it.
        expected: String,
        /// Of the file, in hex.
        found: String,
    },
    /// There are trusted keys, and nobody signed it.
    #[error(
        "{path} is not signed, and this host takes only plugins that a trusted key vouches for, or whose `sha256` is pinned",
        path = path.display()
    )]
    Unsigned {
        /// The plugin.
        path: PathBuf,
        /// Why there is no signature.
        #[source]
        source: SignatureError,
    },
    /// Somebody else signed it, or something else was signed.
    #[error("the signature of {path} is not good; install the file with the signature that belongs to it", path = path.display())]
    Signature {
        /// The plugin.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SignatureError,
    },
    /// No copy of it can be made that nobody can change.
    #[error(
        "{path} cannot be copied to sealed memory, where what was checked is what runs; allow that \
         (vm.memfd_noexec below 2), or ask for neither a digest nor a signature",
        path = path.display()
    )]
    Seal {
        /// The plugin.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not an ELF file, or one of another kind: text, an archive, an object file, a core dump.
    #[error(
        "{path} is not a shared library but {found}; build the provider with crate-type = [\"cdylib\"], and name the .so that \
         comes out",
        path = path.display()
    )]
    NotALibrary {
        /// The plugin.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// An ELF file that does not hang together: cut off, or written over.
    #[error("{path} is not a shared library as a linker leaves it: it is cut off or damaged; install the file again", path = path.display())]
    Damaged {
        /// The plugin.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: object::Error,
    },
    /// Built for other hardware.
    #[error(
        "{path} is built for {found}, this host is {expected}; build it with --target {target}",
        path = path.display(), target = bridge::MANIFEST_TARGET
    )]
    Architecture {
        /// The plugin.
        path: PathBuf,
        /// Its architecture.
        found: String,
        /// The host's.
        expected: String,
    },
    /// A library, but without a manifest.
    #[error(
        "{path} is a shared library, but not an infranetes provider (no {section} section); its crate has to call \
         export_provider!",
        path = path.display(), section = abi::manifest::SECTION
    )]
    NotAProvider {
        /// The plugin.
        path: PathBuf,
    },
    /// A manifest that says nothing useful.
    #[error("the manifest of {path} is damaged: {what}; build it again", path = path.display())]
    Manifest {
        /// The plugin.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// More than one manifest.
    #[error(
        "{path} holds {count} providers ({names}); one file is one provider: keep export_provider! out of libraries \
         that other plugins link",
        path = path.display()
    )]
    SeveralProviders {
        /// The plugin.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Their names.
        names: String,
    },
    /// Another major version of the ABI.
    #[error(
        "provider {} {} ({path}) speaks ABI {} (sdk {}), this host speaks ABI {expected}; rebuild it with an infranetes-sdk \
         of ABI {}",
        manifest.name, manifest.version, manifest.abi, manifest.sdk, major(expected), path = path.display()
    )]
    AbiVersion {
        /// The plugin.
        path: PathBuf,
        /// What it says about itself.
        manifest: Box<Manifest>,
        /// The host's ABI.
        expected: String,
    },
    /// Built for another system or C library.
    #[error("{path} is built for {found}, this host is {expected}; build it with --target {expected}", path = path.display())]
    Target {
        /// The plugin.
        path: PathBuf,
        /// Its target triple.
        found: String,
        /// The host's.
        expected: String,
    },
    /// Its panics would end the host.
    #[error(
        "{path} is built with panic={found}: one bug in it would take this process down; build it with panic = \"unwind\"",
        path = path.display()
    )]
    PanicAbort {
        /// The plugin.
        path: PathBuf,
        /// Its panic strategy.
        found: String,
    },
    /// The program that opens it first cannot be run.
    #[error("cannot run {program} to try the plugin out; install infranetes-probe beside this program", program = program.display())]
    NoProbe {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A child process refuses it, in the words that this one would use.
    #[error("{said}")]
    Probed {
        /// The plugin.
        path: PathBuf,
        /// The refusal.
        said: String,
    },
    /// It did not survive being opened in a child process.
    #[error("{path} was tried out in a child process, which ended with {outcome}; install the file again", path = path.display())]
    Probe {
        /// The plugin.
        path: PathBuf,
        /// How the child ended, and its last words.
        outcome: String,
    },
    /// It is to run in a process of its own, and nobody said how.
    #[error("this program runs no plugins in processes of their own; give {path} no `isolation`", path = path.display())]
    NoIsolation {
        /// The plugin.
        path: PathBuf,
    },
    /// The program that runs plugins cannot be run.
    #[error("cannot run {program} as the process of a plugin", program = program.display())]
    NoHelper {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The process of the plugin ended before the plugin had started.
    #[error("the process of {path} {outcome} while the plugin started; install the file again", path = path.display())]
    HelperEnded {
        /// The plugin.
        path: PathBuf,
        /// How it ended, and its last words.
        outcome: String,
    },
    /// The process of the plugin refuses it, in the words that this one would use.
    #[error(transparent)]
    Isolated(Box<ProviderError>),
    /// The linker refuses it: a library that it needs is not there, or lacks something.
    #[error("the dynamic linker refuses {path}; `ldd {path}` tells what it needs of this host", path = path.display())]
    Linker {
        /// The plugin.
        path: PathBuf,
        /// What the linker says.
        #[source]
        source: LinkerSays,
    },
    /// The check of its types refuses it.
    #[error("{path} cannot be used; rebuild it with a released infranetes-sdk", path = path.display())]
    Abi {
        /// The plugin.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: abi::open::OpenError,
    },
    /// It says no, or panics; a wrong configuration shows here.
    #[error("the provider {instance} ({path}) failed to start", path = path.display())]
    Start {
        /// The plugin.
        path: PathBuf,
        /// The instance.
        instance: String,
        /// What it says.
        #[source]
        source: Box<ProviderError>,
    },
    /// It says nothing.
    #[error(
        "the provider {instance} ({path}) did not start within {} s; its log says what it waits for",
        limit.as_secs_f32(), path = path.display()
    )]
    StartTimeout {
        /// The plugin.
        path: PathBuf,
        /// The instance.
        instance: String,
        /// The limit.
        limit: Duration,
    },
    /// It started, and does not say what it provides.
    #[error("the provider {instance} ({path}) does not describe itself; rebuild it with a released infranetes-sdk", path = path.display())]
    Describe {
        /// The plugin.
        path: PathBuf,
        /// The instance.
        instance: String,
        /// What it says.
        #[source]
        source: Box<ProviderError>,
    },
    /// The process is ending.
    #[error("loading {path} was stopped, because this process ends", path = path.display())]
    Stopped {
        /// The plugin.
        path: PathBuf,
    },
}

/// What the dynamic linker says, about the file by the name that it was given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LinkerSays(pub(crate) String);
