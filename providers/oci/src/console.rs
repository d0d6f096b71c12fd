//! Terminals: the runtime makes one and sends its other end through a socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_sdk::v1::TerminalSize;
use infranetes_sdk::{ProviderError, Result};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::error::io_error;

/// Where the runtime sends a terminal.
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Our end of a terminal.
pub(crate) struct Console {
    /// One terminal, registered once for each direction. It is no pipe, but it is waited for like one.
    output: pipe::Receiver,
    input: pipe::Sender,
}

impl ConsoleSocket {
    pub(crate) fn bind(path: PathBuf) -> Result<Self> {
        let _ = std::fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).map_err(io_error("cannot make a console socket"))?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal.
    pub(crate) async fn receive(&self, limit: Duration) -> Result<Console> {
        let master = timeout(limit, self.accept())
            .await
            .map_err(|_| ProviderError::deadline_exceeded("the runtime sent no terminal"))?
            .map_err(io_error("cannot take the terminal"))?;
        Console::new(master).map_err(io_error("cannot use the terminal"))
    }

    async fn accept(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            let received = stream.try_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut name = [0; 256];
                let mut parts = [io::IoSliceMut::new(&mut name)];
                recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                let rights = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                });
                rights.ok_or_else(|| io::Error::other("no descriptor came with the message"))
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Console {
    fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let output = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
        Ok(Self { output, input: pipe::Sender::from_owned_fd_unchecked(master)? })
    }

    /// Reads output; 0 once nobody holds the other end.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.output.readable().await?;
            match self.output.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Ok(0);
                }
                result => return result,
            }
        }
    }

    /// Writes all of the input.
    pub(crate) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            self.input.writable().await?;
            match self.input.try_write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => data = &data[written?..],
            }
        }
        Ok(())
    }

    /// The end of input, as a terminal has it: control-D.
    pub(crate) async fn close_input(&self) -> io::Result<()> {
        self.write_all(&[END_OF_TRANSMISSION]).await
    }

    pub(crate) fn resize(&self, size: &TerminalSize) -> io::Result<()> {
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: cells(size.rows),
            ws_col: cells(size.columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.input, size)?)
    }
}

const END_OF_TRANSMISSION: u8 = 4;
