//! The socket that the kubelet dials.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

/// A listening socket. Its file goes when this is dropped, unless another daemon's has taken its place.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    identity: (u64, u64),
}

/// A socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("another process listens on {}; stop it, or choose another `listen`", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else, which is left alone.
    #[error("{} is there and is no socket; move it away, or choose another `listen`", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot listen on {}", path.display())]
    Unusable {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Socket {
    /// Listens, for this user and its group alone. A socket that nobody serves any more is replaced.
    pub fn bind(path: &Path) -> Result<Socket, SocketError> {
        let unusable = |source| SocketError::Unusable { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(unusable)?;
        }
        remove_stale(path)?;
        let listener = match listen_at(path) {
            // Somebody else came between.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            listener => listener.map_err(unusable)?,
        };
        let file = std::fs::symlink_metadata(path).map_err(unusable)?;
        Ok(Socket { path: path.to_owned(), listener, identity: (file.dev(), file.ino()) })
    }

    /// What connections come from.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays");
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let unusable = |source| SocketError::Unusable { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of a daemon that ended");
            std::fs::remove_file(path).map_err(unusable)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(unusable(error)),
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

/// The socket's own mode is what its file begins with, so that nobody can connect before the file's mode is right.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

const MODE: u32 = 0o660;
const BACKLOG: i32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_its_user_and_group_and_goes_with_its_owner() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/cri.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cri.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file");
        let live = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        drop(live);
    }

    #[test]
    fn a_path_that_is_no_socket_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        for path in [file.as_path(), root.path()] {
            let error = Socket::bind(path).unwrap_err();
            assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    }

    #[test]
    fn a_socket_that_took_our_place_stays_when_we_go() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cri.sock");
        let old = Socket::bind(&path).unwrap();
        std::fs::rename(&path, root.path().join("away")).unwrap();
        let _new = Socket::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }
}
