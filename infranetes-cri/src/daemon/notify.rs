//! Tells systemd how far the daemon is, if systemd started it.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The way to the service manager, or nowhere.
#[derive(Debug, Default)]
pub struct Notify(Option<OsString>);

impl Notify {
    /// Where `NOTIFY_SOCKET` points to.
    pub fn from_environment() -> Notify {
        Notify(std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()))
    }

    /// It serves.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// It ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// A service manager that does not listen is no reason to fail.
    fn send(&self, state: &str) {
        let Some(path) = &self.0 else { return };
        if let Err(error) = send(path, state) {
            tracing::warn!(%error, state, "the service manager could not be told");
        }
    }
}

fn send(path: &OsString, state: &str) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_hears_of_start_and_end() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify(Some(path.into_os_string()));
        notify.ready();
        notify.stopping();
        for expected in ["READY=1", "STOPPING=1"] {
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected.as_bytes());
        }
        Notify::default().ready();
    }
}
