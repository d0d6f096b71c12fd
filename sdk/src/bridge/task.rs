//! Work that runs on one side's runtime and is awaited from the other side's threads.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};

use crate::context::CallContext;
use crate::error::{ProviderError, Result};

/// Runs `work` on `runtime`. The future that comes back is only a handle: polling it runs nothing of the work, dropping
/// it cancels the work on its own runtime, and a panic in the work is an answer.
pub(super) fn run<T: Send + 'static>(
    runtime: &Handle,
    label: String,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Running<T> {
    Running { task: runtime.spawn(work), label }
}

/// See [`run`].
pub(super) struct Running<T> {
    task: JoinHandle<Result<T>>,
    label: String,
}

impl<T> Future for Running<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task).poll(cx).map(|joined| match joined {
            Ok(reply) => reply,
            Err(error) => Err(join_error(&self.label, error)),
        })
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends `work` at the context's deadline.
pub(super) async fn within<T>(
    context: &CallContext,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(deadline) = context.deadline else { return work.await };
    let patience = context.remaining().unwrap_or_default();
    match tokio::time::timeout_at(deadline, work).await {
        Ok(reply) => reply,
        Err(_) => Err(ProviderError::deadline_exceeded(format!(
            "no answer within {} ms",
            patience.as_millis()
        ))),
    }
}

fn join_error(label: &str, error: JoinError) -> ProviderError {
    match error.try_into_panic() {
        Ok(payload) => panicked(label, payload.as_ref()),
        Err(_) => ProviderError::transient(format!("{label} was stopped before it answered")),
    }
}

/// The error for a panic: "LABEL panicked: MESSAGE".
pub(super) fn panicked(label: &str, payload: &(dyn Any + Send)) -> ProviderError {
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    ProviderError::internal(format!("{label} panicked: {message}"))
}
