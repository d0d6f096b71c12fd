//! Streams that go both ways: a command, a container's own streams, a connection to a port.
//!
//! Input is a stream that the session reads no faster than the machine takes it; output is a stream that the machine fills
//! no faster than it is read. **Dropping the output ends the whole exchange**, input too: a command is killed, an attached
//! client leaves, a connection is closed. The end of the input alone is the end of that direction only.

use std::time::Duration;

use futures::stream::BoxStream;

use super::SessionError;
use crate::ids::ContainerId;

/// A command to run in a container, on streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecStart {
    /// The container.
    pub container: ContainerId,
    /// Program and arguments.
    pub args: Vec<String>,
    /// On a terminal, which carries both outputs as standard output.
    pub tty: bool,
    /// With a standard input.
    pub stdin: bool,
    /// Killed after this time.
    pub timeout: Option<Duration>,
}

/// What goes to a program. The end of the input means the same as [`ProgramInput::Closed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramInput {
    /// For its standard input.
    Data(Vec<u8>),
    /// Its standard input ends; a terminal gets control-D.
    Closed,
    /// Its terminal has another size.
    Resize(TerminalSize),
}

/// What comes from a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramOutput {
    /// It wrote to standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended: always the last of a command, and never of an attach.
    Exit(ExecExit),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecExit {
    /// 128 + signal when it was killed.
    pub code: i32,
    /// It was killed because its time was over.
    pub timed_out: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What comes from a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortOutput {
    /// It was written by whoever listens there.
    Data(Vec<u8>),
    /// Nothing follows from there; the other direction may go on. The stream ends when both directions are over.
    Closed,
}

/// Input of a program on its way.
pub type ProgramInputs = BoxStream<'static, ProgramInput>;
/// Output of a program on its way. An error is the last item.
pub type ProgramOutputs = BoxStream<'static, Result<ProgramOutput, SessionError>>;
/// Bytes for a port on their way.
pub type PortInputs = BoxStream<'static, Vec<u8>>;
/// What comes from a port on its way. An error is the last item.
pub type PortOutputs = BoxStream<'static, Result<PortOutput, SessionError>>;
