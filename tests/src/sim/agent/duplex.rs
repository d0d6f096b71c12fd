//! Programs and ports that echo what they get: stdin to stdout, data to data. A cut ends them with an error.

use futures::StreamExt;
use futures::stream::unfold;
use infranetes_core::session::duplex::{
    ExecExit, PortInputs, PortOutput, PortOutputs, ProgramInput, ProgramInputs, ProgramOutput,
    ProgramOutputs,
};

use super::Line;

/// Echoes until its input ends, then exits with 0.
pub(super) fn program(line: Line, input: ProgramInputs) -> ProgramOutputs {
    Box::pin(unfold(Some((line, input)), |state| async {
        let (line, mut input) = state?;
        let output = loop {
            match input.next().await {
                Some(ProgramInput::Data(data)) => break ProgramOutput::Stdout(data),
                Some(ProgramInput::Resize(_)) => {}
                Some(ProgramInput::Closed) | None => {
                    break ProgramOutput::Exit(ExecExit { code: 0, timed_out: false });
                }
            }
        };
        let ended = matches!(output, ProgramOutput::Exit(_));
        match line.alive() {
            Ok(()) if ended => Some((Ok(output), None)),
            Ok(()) => Some((Ok(output), Some((line, input)))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// Echoes until its input ends, then closes.
pub(super) fn port(line: Line, input: PortInputs) -> PortOutputs {
    Box::pin(unfold(Some((line, input)), |state| async {
        let (line, mut input) = state?;
        let output = input.next().await.map_or(PortOutput::Closed, PortOutput::Data);
        let ended = output == PortOutput::Closed;
        match line.alive() {
            Ok(()) => Some((Ok(output), (!ended).then_some((line, input)))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}
