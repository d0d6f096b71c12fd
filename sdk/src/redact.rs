//! `Debug` of the messages that may carry secrets: it shows what a log needs, and never a value.

use std::fmt;

use crate::v1;

/// Stands where a secret is; shows how long it is.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes hidden>", self.0)
    }
}

impl fmt::Debug for v1::CreateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateRequest")
            .field("token", &self.token)
            .field("name", &self.name)
            .field("machine_type", &self.machine_type)
            .field("image", &self.image)
            .field("user_data", &Hidden(self.user_data.len()))
            .field("tags", &self.tags)
            .field("network", &self.network)
            .field("disks", &self.disks)
            .field("checkpoint", &self.checkpoint)
            .finish()
    }
}

impl fmt::Debug for v1::EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvVar")
            .field("name", &self.name)
            .field("value", &Hidden(self.value.len()))
            .finish()
    }
}

impl fmt::Debug for v1::PullRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullRequest")
            .field("reference", &self.reference)
            .field("username", &Hidden(self.username.len()))
            .field("password", &Hidden(self.password.len()))
            .finish()
    }
}

impl fmt::Debug for v1::SecretResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretResponse").field("value", &Hidden(self.value.len())).finish()
    }
}

impl fmt::Debug for v1::StartRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartRequest")
            .field("instance", &self.instance)
            .field("config_json", &Hidden(self.config_json.len()))
            .field("state_dir", &self.state_dir)
            .field("worker_threads", &self.worker_threads)
            .field("log_level", &self.log_level)
            .finish()
    }
}

impl fmt::Debug for v1::ExecStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecStart")
            .field("container_id", &self.container_id)
            .field("args", &Hidden(self.args.iter().map(String::len).sum()))
            .field("tty", &self.tty)
            .field("stdin", &self.stdin)
            .field("timeout_ms", &self.timeout_ms)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_shows_in_debug_output() {
        let secret = "s3cr3t";
        let shown = [
            format!("{:?}", v1::EnvVar { name: "TOKEN".into(), value: secret.into() }),
            format!("{:?}", v1::CreateRequest { user_data: secret.into(), ..Default::default() }),
            format!(
                "{:?}",
                v1::PullRequest {
                    reference: "registry/image".into(),
                    username: secret.into(),
                    password: secret.into(),
                }
            ),
            format!("{:?}", v1::SecretResponse { value: secret.into() }),
            format!("{:?}", v1::StartRequest { config_json: secret.into(), ..Default::default() }),
            format!("{:?}", v1::ExecStart { args: vec![secret.into()], ..Default::default() }),
        ];
        for text in shown {
            assert!(!text.contains(secret), "{text}");
            assert!(text.contains("6 bytes hidden"), "{text}");
        }
    }
}
