//! A command or an attached container on a client's streams.

use futures::stream::{self, StreamExt};
use infranetes_core::engine::Engine;
use infranetes_core::ids::ContainerId;
use infranetes_core::session::SessionError;
use infranetes_core::session::duplex::{
    ExecStart, ProgramInput, ProgramInputs, ProgramOutput, ProgramOutputs,
};

use super::channels::Channels;
use super::status::Outcome;
use crate::chain;

/// What runs at the other end of the streams.
pub(super) enum Program {
    Command(ExecStart),
    Container(ContainerId),
}

/// Connects the client with its program, to the end of either, and tells the client how it ended.
pub(super) async fn run(engine: &Engine, program: Program, mut channels: Channels) {
    let gone = channels.gone.clone();
    let work = async {
        let input = input(&mut channels, matches!(program, Program::Container(_)));
        let (begun, has_exit) = match program {
            Program::Command(start) => (engine.exec(start, input).await, true),
            Program::Container(id) => (engine.attach(&id, input).await, false),
        };
        let outcome = match begun {
            Ok(output) => copy(output, &mut channels, has_exit).await,
            Err(error) => Outcome::Failure(chain(&error)),
        };
        for output in [channels.stdout.take(), channels.stderr.take()].into_iter().flatten() {
            output.finish().await;
        }
        let told = outcome.write(channels.form);
        if !told.is_empty() && channels.error.send(told).await.is_err() {
            return;
        }
        channels.error.finish().await;
    };
    tokio::select! {
        () = work => {}
        // Dropping the output ends what the client began.
        () = gone.cancelled() => tracing::debug!("a streaming client went away"),
    }
}

fn input(channels: &mut Channels, is_attach: bool) -> ProgramInputs {
    let data = match channels.stdin.take() {
        None => stream::empty().boxed(),
        Some(data) => {
            // Even before anything is typed the container knows that this client brings input.
            let first = is_attach.then(|| ProgramInput::Data(Vec::new()));
            let data = data.map(ProgramInput::Data);
            let closed = stream::iter([ProgramInput::Closed]);
            stream::iter(first).chain(data).chain(closed).boxed()
        }
    };
    match channels.resize.take() {
        None => data,
        Some(sizes) => stream::select(data, sizes.map(ProgramInput::Resize)).boxed(),
    }
}

/// Passes output on. An output that the client does not want (any more) is thrown away, so that the program goes on.
async fn copy(mut output: ProgramOutputs, channels: &mut Channels, has_exit: bool) -> Outcome {
    while let Some(item) = output.next().await {
        let (target, data) = match item {
            Ok(ProgramOutput::Stdout(data)) => (&mut channels.stdout, data),
            Ok(ProgramOutput::Stderr(data)) => (&mut channels.stderr, data),
            Ok(ProgramOutput::Exit(exit)) => return Outcome::of_exit(exit.code),
            Err(error) => return Outcome::Failure(broken(&error)),
        };
        if let Some(open) = target
            && open.send(data).await.is_err()
        {
            *target = None;
        }
    }
    match has_exit {
        true => Outcome::Failure("the machine did not tell how the command ended".to_owned()),
        false => Outcome::Success,
    }
}

/// What a client is told of a stream that ended before its end.
pub(super) fn broken(error: &SessionError) -> String {
    format!("the stream from the pod's machine broke off: {}", chain(error))
}
