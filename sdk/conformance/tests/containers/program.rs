//! What the programs of the suite do, for a provider that runs nothing: its scripts are known, and so is their output.

use std::time::Duration;

use infranetes_sdk::container::{CreateContainerRequest, LogStream};

/// What a program does.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// After which pause it writes what.
    pub(crate) output: Vec<(Duration, LogStream, String)>,
    /// Echoes its input before all else.
    pub(crate) echoes: bool,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// By itself, after this time.
    Exit(Duration, i32),
    /// Only by a signal; TERM gives this code, or is ignored.
    Endless(Option<i32>),
    /// There is no such program.
    NotFound,
    /// Looks whether a process lives.
    Alive(u32),
}

impl Program {
    /// What `args` do in a container that was made as `container`, as process `pid`.
    pub(crate) fn new(args: &[String], container: &CreateContainerRequest, pid: u32) -> Self {
        let mut program = Self { output: Vec::new(), echoes: false, end: exit(0) };
        let [_, _, script] = args else {
            return Self { end: End::NotFound, ..program };
        };
        let mut rest = script.as_str();
        if let Some(after) = rest.strip_prefix("echo begun; ") {
            program.out("begun\n");
            rest = after;
        }
        match rest {
            "cat" => program.echoes = true,
            "printf out; printf err >&2; exit 3" => {
                program.out("out");
                program.err("err");
                program.end = exit(3);
            }
            "sleep 100 & echo begun; wait" => {
                program.out("begun\n");
                program.end = End::Exit(Duration::from_secs(100), 0);
            }
            "echo $$; exec sleep 1000" => {
                program.out(&format!("{pid}\n"));
                program.end = End::Endless(None);
            }
            _ if rest.starts_with("i=0; while [ $i -lt 2000 ]") => {
                (0..2000).for_each(|line| program.out(&format!("line-{line}\n")));
            }
            _ if rest.starts_with("i=0; while [ $i -lt 500 ]") => {
                for line in 0..500 {
                    program.out(&format!("out-{line}\n"));
                    program.err(&format!("err-{line}\n"));
                }
                program.out("no newline");
            }
            _ if rest.starts_with("for i in 1 2 3 4 5;") => {
                let line =
                    |number| (Duration::from_millis(200), LogStream::Stdout, format!("{number}\n"));
                program.output.extend((1..=5).map(line));
            }
            _ if rest.starts_with("echo \"$GREETING\"") => program.out(&identity(container)),
            _ if rest.starts_with("trap '' TERM") => program.end = End::Endless(None),
            _ if rest.starts_with("trap 'exit ") => {
                program.end = End::Endless(Some(number(rest, "trap 'exit ")));
            }
            _ if rest.starts_with("kill -0 ") => {
                program.end = End::Alive(number(rest, "kill -0 ").unsigned_abs());
            }
            "sleep 2" => program.end = End::Exit(Duration::from_secs(2), 0),
            _ if rest.starts_with("sleep 1; exit ") => {
                program.end = End::Exit(Duration::from_secs(1), number(rest, "sleep 1; exit "));
            }
            _ => program.end = exit(number(rest, "exit ")),
        }
        program
    }

    fn out(&mut self, text: &str) {
        self.output.push((Duration::ZERO, LogStream::Stdout, text.to_owned()));
    }

    fn err(&mut self, text: &str) {
        self.output.push((Duration::ZERO, LogStream::Stderr, text.to_owned()));
    }
}

fn exit(code: i32) -> End {
    End::Exit(Duration::ZERO, code)
}

/// The number after a prefix; a script of the suite that is not known here fails the tests by this.
fn number(script: &str, prefix: &str) -> i32 {
    let digits = script.strip_prefix(prefix).unwrap_or_default();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or_else(|_| panic!("nobody knows what {script:?} does"))
}

fn identity(container: &CreateContainerRequest) -> String {
    let process = container.process.clone().unwrap_or_default();
    let security = container.security.clone().unwrap_or_default();
    let greeting = process.env.iter().find(|variable| variable.name == "GREETING");
    let greeting = greeting.map(|it| String::from_utf8_lossy(&it.value).into_owned());
    format!(
        "{}\n{}\n{}\n{}\n{}\n",
        greeting.unwrap_or_default(),
        process.cwd,
        security.uid.unwrap_or_default(),
        security.gid.unwrap_or_default(),
        container.hostname
    )
}
