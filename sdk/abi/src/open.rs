//! The host's side: opening a file that was vetted.

use std::path::Path;

use abi_stable::library::{AbiHeaderRef, LibHeader, LibraryError};
use abi_stable::sabi_types::VersionStrings;

use crate::layout::{Mismatch, check_layout};
use crate::{PluginModuleRef, VERSION};

/// Why a library could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The dynamic linker refused it.
    #[error("the dynamic linker refuses it")]
    Linker(#[source] libloading::Error),
    /// The symbol that the manifest names is not there. What the linker says of it only repeats that.
    #[error("it does not export {symbol}, which its manifest names")]
    Symbol {
        /// What was looked for.
        symbol: String,
    },
    /// The symbol is not what it should be.
    #[error("it exports something else under the name of a provider")]
    Header(#[source] Box<LibraryError>),
    /// Another major version of the ABI.
    #[error("its ABI is {found}, this host speaks {VERSION}")]
    Version {
        /// The library's version.
        found: String,
    },
    /// The types are laid out differently.
    #[error("its ABI does not match this host")]
    Layout(#[source] Mismatch),
    /// The library gave no description of its types.
    #[error("it does not describe its ABI")]
    NoLayout,
    /// The library could not set itself up.
    #[error("it failed to set itself up")]
    Construct(#[source] Box<LibraryError>),
}

/// Opens a library and gives its module. It stays mapped for ever: `std` in the library assumes so.
///
/// Code of the library runs here, before any check of this function, and with all rights of this process: the caller
/// vouches for the file. Nothing can make that sound for a file that lies or is damaged; a digest or a trusted directory
/// has to come before. `symbol` is the name that the manifest gives.
///
/// Pass "/proc/self/fd/N" to open exactly the file that was looked at, and keep N open for ever: the linker knows
/// libraries by their names, and a reused N would give the library that was opened first.
pub fn open(path: &Path, symbol: &str) -> Result<PluginModuleRef, OpenError> {
    let header = find_header(path, symbol)?;
    check_version(header.version_strings())?;
    check_layout(header.layout().ok_or(OpenError::NoLayout)?).map_err(OpenError::Layout)?;
    // SAFETY: the layout was compared above, in both directions, and the version too.
    unsafe { header.init_root_module_with_unchecked_layout::<PluginModuleRef>() }
        .map_err(|source| OpenError::Construct(Box::new(source)))
}

fn find_header(path: &Path, symbol: &str) -> Result<&'static LibHeader, OpenError> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    // SAFETY: constructors of the library run; the caller vouches for the file (see `open`).
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) }
        .map_err(OpenError::Linker)?;
    // SAFETY: `AbiHeaderRef` is a transparent pointer to a static of the library, which stays mapped for ever; its
    // first bytes are a magic string that `upgrade` checks before anything else is read.
    let header = unsafe { library.get::<AbiHeaderRef>(symbol.as_bytes()) }
        .map(|found| *found)
        .map_err(|_| OpenError::Symbol { symbol: symbol.into() })?;
    std::mem::forget(library);
    header.upgrade().map_err(|source| OpenError::Header(Box::new(source)))
}

fn check_version(found: VersionStrings) -> Result<(), OpenError> {
    let major = |text: &str| text.split('.').next().map(str::to_owned);
    let found = found.version.as_str();
    if major(found) == major(VERSION) {
        return Ok(());
    }
    Err(OpenError::Version { found: found.to_owned() })
}

/// Never unmap, whatever is closed. libloading does not name it; the value is Linux's on every architecture.
const RTLD_NODELETE: std::ffi::c_int = 0x1000;
