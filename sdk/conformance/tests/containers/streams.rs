//! The streams of the provider: layers in, output, events, and programs beside a container's own.

use std::time::Duration;

use infranetes_sdk::container::{
    ContainerEvent, ContainerState, ExecExit, ExecInput, ExecInputPart, ExecOutput, ExecOutputPart,
    ImportChunk, ImportPart, ImportProgress, Layer, LogChunk, LogStream, LogsInput, LogsInputPart,
};
use infranetes_sdk::{BoxStream, ProviderError, Result, StreamExt, stream};
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use super::program::{End, Program};
use super::{Liar, Lie};

impl Liar {
    pub(super) fn event_stream(&self) -> BoxStream<ContainerEvent> {
        let (sender, events) = stream::channel(16);
        let liar = self.clone();
        let mut changed = self.changed.subscribe();
        let (known, mut next) = {
            let state = self.lock();
            let known: Vec<_> = state.containers.values().map(|it| it.status.clone()).collect();
            (known, state.events.len())
        };
        tokio::spawn(async move {
            let known = if liar.tells(Lie::TellsOnlyChanges) { Vec::new() } else { known };
            let mut new = known;
            loop {
                for status in new.drain(..) {
                    let status = Some(status);
                    if sender.send(Ok(ContainerEvent { status })).await.is_err() {
                        return;
                    }
                }
                changed.mark_unchanged();
                new = liar.lock().events[next..].to_vec();
                next += new.len();
                if new.is_empty() && changed.changed().await.is_err() {
                    return;
                }
            }
        });
        events
    }

    pub(super) fn import_stream(
        &self,
        mut input: BoxStream<ImportChunk>,
    ) -> BoxStream<ImportProgress> {
        let (sender, progress) = stream::channel(4);
        let liar = self.clone();
        tokio::spawn(async move {
            let mut taken: Option<(Layer, Vec<u8>)> = None;
            let outcome = loop {
                match input.next().await {
                    Some(Ok(ImportChunk { part: Some(ImportPart::Layer(layer)) })) => {
                        taken = Some((layer, Vec::new()));
                    }
                    Some(Ok(ImportChunk { part: Some(ImportPart::Data(data)) })) => {
                        if let Some((_, bytes)) = &mut taken {
                            bytes.extend(data);
                        }
                    }
                    Some(Ok(ImportChunk { part: None })) => {}
                    Some(Err(error)) => break Err(error),
                    None => break Ok(()),
                }
            };
            let answer = liar.take(taken, outcome);
            // The sender may be gone.
            let _ = sender.send(answer).await;
        });
        progress
    }

    fn take(&self, taken: Option<(Layer, Vec<u8>)>, outcome: Result<()>) -> Result<ImportProgress> {
        let (layer, bytes) = taken.ok_or_else(|| ProviderError::invalid("no layer came"))?;
        let mut state = self.lock();
        if let Err(error) = outcome {
            if self.tells(Lie::KeepsHalves) {
                state.layers.insert(layer.digest);
            }
            return Err(error);
        }
        let is_right = state.blobs.get(&layer.digest) == Some(&bytes);
        if !is_right && !self.tells(Lie::TakesWrongBytes) {
            return Err(ProviderError::invalid("the digest differs"));
        }
        if !self.tells(Lie::ForgetsLayers) {
            state.layers.insert(layer.digest.clone());
        }
        Ok(ImportProgress { digest: layer.digest, done: true })
    }

    pub(super) async fn log_stream(
        &self,
        mut input: BoxStream<LogsInput>,
    ) -> Result<BoxStream<LogChunk>> {
        let first = input.next().await.transpose()?.and_then(|input| input.input);
        let Some(LogsInputPart::Start(start)) = first else {
            return Err(ProviderError::invalid("the first input is no start"));
        };
        if !self.lock().containers.contains_key(&start.id) {
            return Err(self.none(&start.id));
        }
        let (sender, chunks) = stream::channel(16);
        let liar = self.clone();
        let mut changed = self.changed.subscribe();
        tokio::spawn(async move {
            let mut sent = if liar.tells(Lie::BeginsAgain) { 0 } else { start.after };
            loop {
                changed.mark_unchanged();
                let (new, ended) = {
                    let state = liar.lock();
                    let Some(container) = state.containers.get(&start.id) else { return };
                    let ended = container.status.state() == ContainerState::Exited;
                    let new = container.chunks.iter().filter(|chunk| chunk.sequence > sent);
                    let held = liar.tells(Lie::HoldsOutput) && !ended;
                    (if held { Vec::new() } else { new.cloned().collect::<Vec<_>>() }, ended)
                };
                let nothing = new.is_empty();
                for chunk in new {
                    sent = chunk.sequence;
                    if sender.send(Ok(chunk)).await.is_err() {
                        return;
                    }
                }
                if nothing && (ended || changed.changed().await.is_err()) {
                    return;
                }
            }
        });
        Ok(chunks)
    }

    pub(super) async fn exec_stream(
        &self,
        mut input: BoxStream<ExecInput>,
    ) -> Result<BoxStream<ExecOutput>> {
        let first = input.next().await.transpose()?.and_then(|input| input.input);
        let Some(ExecInputPart::Start(start)) = first else {
            return Err(ProviderError::invalid("the first input is no start"));
        };
        let (program, pid) = {
            let mut state = self.lock();
            state.pids += 1;
            let pid = state.pids;
            let container = state.containers.get(&start.container_id);
            let container = container.ok_or_else(|| self.none(&start.container_id))?;
            let runs = container.status.state() == ContainerState::Running;
            if !runs && !self.tells(Lie::RunsTheDead) {
                return Err(ProviderError::conflict("the container does not run"));
            }
            let program = Program::new(&start.args, &container.request, pid);
            state.alive.insert(pid);
            (program, pid)
        };
        let (sender, output) = stream::channel(16);
        let liar = self.clone();
        let limit = match (start.timeout_ms, self.tells(Lie::IgnoresTimeout)) {
            (0, _) | (_, true) => Duration::MAX,
            (limit, false) => Duration::from_millis(limit),
        };
        tokio::spawn(async move {
            let exit = tokio::select! {
                ended = timeout(limit, liar.run(program, input, &sender)) => match ended {
                    Ok(code) => Some(ExecExit { code, timed_out: false }),
                    Err(_) => Some(ExecExit { code: 137, timed_out: true }),
                },
                () = sender.closed() => None,
            };
            if exit.is_some() || !liar.tells(Lie::SurvivesDrop) {
                liar.lock().alive.remove(&pid);
            }
            if let Some(mut exit) = exit {
                if liar.tells(Lie::AllIsWell) {
                    exit.code = 0;
                }
                let output = Some(ExecOutputPart::Exit(exit));
                // The reader may be gone.
                let _ = sender.send(Ok(ExecOutput { output })).await;
            }
        });
        Ok(output)
    }

    /// Does what a program does, and answers its exit code.
    async fn run(
        &self,
        program: Program,
        mut input: BoxStream<ExecInput>,
        sender: &Sender<Result<ExecOutput>>,
    ) -> i32 {
        let _turn = match self.tells(Lie::OneAtATime) {
            true => Some(self.turn.lock().await),
            false => None,
        };
        if program.echoes {
            self.echo(&mut input, sender).await;
        }
        for (pause, stream, text) in program.output {
            sleep(pause).await;
            let data = text.into_bytes();
            let part = match stream {
                LogStream::Stderr if !self.tells(Lie::MixesStreams) => ExecOutputPart::Stderr(data),
                _ => ExecOutputPart::Stdout(data),
            };
            write(sender, part).await;
        }
        match program.end {
            End::Exit(after, code) => {
                sleep(after).await;
                code
            }
            End::NotFound => 127,
            End::Alive(pid) => i32::from(!self.lock().alive.contains(&pid)),
            End::Endless(_) => std::future::pending().await,
        }
    }

    async fn echo(&self, input: &mut BoxStream<ExecInput>, sender: &Sender<Result<ExecOutput>>) {
        loop {
            match input.next().await.and_then(Result::ok).and_then(|input| input.input) {
                Some(ExecInputPart::Stdin(data)) => {
                    let keep =
                        if self.tells(Lie::LosesInput) { data.len() / 2 } else { data.len() };
                    write(sender, ExecOutputPart::Stdout(data[..keep].to_vec())).await;
                }
                Some(ExecInputPart::StdinClosed(_)) | None => return,
                Some(_) => {}
            }
        }
    }
}

async fn write(sender: &Sender<Result<ExecOutput>>, part: ExecOutputPart) {
    // A reader that is gone ends the program from outside.
    let _ = sender.send(Ok(ExecOutput { output: Some(part) })).await;
}
