//! A line between node and agent that a test can cut.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};

/// A forwarder between node and agent that can be cut.
pub(crate) struct Wire {
    pub(crate) endpoint: String,
    connections: Arc<tokio::sync::watch::Sender<bool>>,
    _dir: tempfile::TempDir,
}

impl Wire {
    pub(crate) async fn lay(endpoint: &str) -> Self {
        let target = PathBuf::from(endpoint.strip_prefix("unix://").unwrap());
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("wire.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let connections = Arc::new(tokio::sync::watch::channel(false).0);
        let cut = connections.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = UnixStream::connect(&target).await.unwrap();
                let mut cut = cut.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => (),
                        _ = cut.wait_for(|cut| *cut) => (),
                    }
                });
            }
        });
        Self { endpoint: format!("unix://{}", socket.display()), connections, _dir: dir }
    }

    pub(crate) fn cut(&self) {
        self.connections.send_replace(true);
    }
}
