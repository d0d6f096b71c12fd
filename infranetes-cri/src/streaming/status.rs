//! How a command ended, as clients want to hear it.

use serde_json::json;

/// How it is written. Clients of before v4 know a sentence, and nothing for success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `metav1.Status`.
    Json,
    Text,
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// The command ended with another code than 0.
    Exit(i32),
    /// It could not be done, or broke off.
    Failure(String),
}

impl Outcome {
    pub(super) fn of_exit(code: i32) -> Self {
        if code == 0 { Self::Success } else { Self::Exit(code) }
    }

    /// The bytes for the stream of errors; may be none.
    pub(super) fn write(&self, form: Form) -> Vec<u8> {
        match form {
            Form::Json => self.json().to_string().into_bytes(),
            Form::Text => self.text().into_bytes(),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Exit(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Failure(why) => why.clone(),
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failure(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {why}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": why}]},
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause_and_older_clients_get_a_sentence() {
        let json = |outcome: Outcome| -> serde_json::Value {
            serde_json::from_slice(&outcome.write(Form::Json)).unwrap()
        };
        assert_eq!(json(Outcome::of_exit(0))["status"], "Success");
        let exit = json(Outcome::of_exit(7));
        assert_eq!(
            (&exit["status"], &exit["reason"]),
            (&"Failure".into(), &"NonZeroExitCode".into())
        );
        assert_eq!(exit["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        let failure = json(Outcome::Failure("no \"shell\"".into()));
        assert_eq!(failure["message"], "Internal error occurred: no \"shell\"");
        assert_eq!(Outcome::Success.write(Form::Text), b"");
        assert!(Outcome::Exit(7).write(Form::Text).ends_with(b"exit status 7"));
    }
}
