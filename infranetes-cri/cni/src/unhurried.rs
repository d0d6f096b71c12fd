//! Work that waits for the disk or walks through the kernel's lists, in the middle of a task.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Does it here, while another thread takes over what else this one had to do: a daemon on a small node has one worker, and every call
/// would wait for a sync of the disk. Nothing can be cut off in the middle of it, as it could in a task of its own.
pub(crate) fn unhurried<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // There is nobody to take over.
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_only_worker_goes_on_meanwhile() {
        let (sender, receiver) = mpsc::channel();
        tokio::spawn(async move {
            let other = tokio::spawn(async move { sender.send(()) });
            // Without help this would wait for a task that waits for it.
            unhurried(|| receiver.recv_timeout(Duration::from_secs(10))).unwrap();
            other.await.unwrap().unwrap();
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn where_there_is_one_thread_alone_it_is_done_all_the_same() {
        assert_eq!(unhurried(|| 1), 1);
    }
}
