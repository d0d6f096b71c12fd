//! One connection of a client to a port of its pod.

use futures::StreamExt;
use infranetes_core::engine::Engine;
use infranetes_core::ids::SandboxId;
use infranetes_core::session::duplex::{PortOutput, PortOutputs};

use super::channels::{Output, PortChannels};
use super::program::broken;
use crate::chain;

/// Connects the client with the port until both directions are over, and tells it what goes wrong.
pub(super) async fn forward(engine: &Engine, sandbox: &SandboxId, channels: PortChannels) {
    let PortChannels { port, input, output, mut error, gone } = channels;
    let work = async {
        let problem = match engine.port_forward(sandbox, port, input).await {
            Ok(bytes) => copy(bytes, output).await,
            Err(problem) => {
                output.finish().await;
                Err(chain(&problem))
            }
        };
        if let Err(problem) = problem {
            let told = format!("error forwarding port {port} to sandbox {sandbox}: {problem}");
            let _ = error.send(told.into_bytes()).await;
        }
        error.finish().await;
    };
    tokio::select! {
        () = work => {}
        // Dropping the bytes closes the connection in the pod.
        () = gone.cancelled() => tracing::debug!(port, "a client dropped its connection to a port"),
    }
}

/// Until both directions are over: the end of what the port says is not the end of what it hears.
async fn copy(mut bytes: PortOutputs, output: Box<dyn Output>) -> Result<(), String> {
    let mut output = Some(output);
    let mut problem = Ok(());
    while let Some(item) = bytes.next().await {
        match item {
            Ok(PortOutput::Data(data)) => {
                if let Some(open) = &mut output
                    && open.send(data).await.is_err()
                {
                    return Ok(());
                }
            }
            Ok(PortOutput::Closed) => {
                if let Some(open) = output.take() {
                    open.finish().await;
                }
            }
            Err(error) => problem = Err(broken(&error)),
        }
    }
    if let Some(open) = output {
        open.finish().await;
    }
    problem
}
