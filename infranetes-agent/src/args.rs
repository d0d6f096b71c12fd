//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use tracing::level_filters::LevelFilter;

use crate::lines;
use crate::listener::{Listen, ListenError};

/// How to call the agent.
pub const USAGE: &str = "\
usage: infranetes-agent --user-data FILE --plugins DIR --state DIR
                        [--listen tcp://ADDRESS:PORT | unix:///PATH] [--log error|warn|info|debug]
                        [--own-machine | --isolate [--hostname NAME] [--network PATH]]
       infranetes-agent --version
       infranetes-agent --pause [--user-namespace]

  --own-machine  hostname and kernel parameters of this machine are the pod's
  --isolate      run in new namespaces, which are the machine then
  --network      with a network namespace that is there already, by its path
  --pause        only wait and reap: the first process of a pid namespace that containers share";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Run.
    Run(Args),
    /// Only wait and reap.
    Pause,
    /// Likewise, in a user namespace that the caller maps.
    PauseWithUsers,
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// Arguments of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// File with the user-data; deleted when read.
    pub user_data: PathBuf,
    /// Where to listen, if not where the user-data says.
    pub listen: Option<Listen>,
    /// Directory of the plugins.
    pub plugins: PathBuf,
    /// Directory for everything that is written.
    pub state: PathBuf,
    /// The loudest lines that are written.
    pub log: LevelFilter,
    /// What of the machine is the agent's.
    pub place: Place,
}

/// What of the machine is the agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing: others use it, too.
    Shared,
    /// All of it.
    Own,
    /// Make new namespaces, and run in them.
    Isolate(World),
    /// In the new namespaces: said by the keeper to the process that it starts.
    Isolated(World),
}

/// Namespaces that stand in for a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Their host name.
    pub hostname: Option<String>,
    /// A network namespace that is there already; absent makes one with loopback alone.
    pub network: Option<PathBuf>,
}

impl Command {
    /// Parses the arguments, without the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut args = args.into_iter();
        let mut given = Given::default();
        while let Some(arg) = args.next() {
            let name = arg.to_str().ok_or(UsageError::NotText)?;
            match name {
                "--version" => return Ok(Self::Version),
                "--pause" if args.next().is_some_and(|next| next == "--user-namespace") => {
                    return Ok(Self::PauseWithUsers);
                }
                "--pause" => return Ok(Self::Pause),
                "--help" | "-h" => return Ok(Self::Help),
                "--own-machine" => given.own = true,
                "--isolate" => given.isolate = true,
                // Not for people: the keeper says it to the process in the namespaces.
                "--isolated" => given.isolated = true,
                _ => given.set(name, &mut args)?,
            }
        }
        given.args().map(Self::Run)
    }
}

#[derive(Default)]
struct Given {
    user_data: Option<PathBuf>,
    listen: Option<Listen>,
    plugins: Option<PathBuf>,
    state: Option<PathBuf>,
    log: Option<LevelFilter>,
    world: World,
    own: bool,
    isolate: bool,
    isolated: bool,
}

impl Given {
    fn set(
        &mut self,
        name: &str,
        args: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), UsageError> {
        if !["--user-data", "--listen", "--plugins", "--state", "--log", "--hostname", "--network"]
            .contains(&name)
        {
            return Err(UsageError::Unknown(name.to_owned()));
        }
        let value = args.next().ok_or_else(|| UsageError::NoValue(name.to_owned()))?;
        match name {
            "--user-data" => self.user_data = Some(value.into()),
            "--plugins" => self.plugins = Some(value.into()),
            "--state" => self.state = Some(value.into()),
            "--network" => self.world.network = Some(value.into()),
            _ => {
                let text = value.into_string().map_err(|_| UsageError::NotText)?;
                match name {
                    "--listen" => self.listen = Some(Listen::parse(&text)?),
                    "--hostname" => self.world.hostname = Some(text),
                    _ => {
                        let level = lines::parse_level(&text).ok_or(UsageError::Level(text))?;
                        self.log = Some(level);
                    }
                }
            }
        }
        Ok(())
    }

    fn args(self) -> Result<Args, UsageError> {
        let place = match (self.own, self.isolate, self.isolated) {
            (false, true, false) => Place::Isolate(self.world),
            (false, false, true) => Place::Isolated(self.world),
            (_, true, _) | (_, _, true) => return Err(UsageError::Places),
            _ if self.world != World::default() => return Err(UsageError::WorldAlone),
            (true, ..) => Place::Own,
            (false, ..) => Place::Shared,
        };
        let state = self.state.ok_or(UsageError::Missing("--state"))?;
        if !state.is_absolute() {
            return Err(UsageError::Relative);
        }
        Ok(Args {
            user_data: self.user_data.ok_or(UsageError::Missing("--user-data"))?,
            listen: self.listen,
            plugins: self.plugins.ok_or(UsageError::Missing("--plugins"))?,
            state,
            log: self.log.unwrap_or(LevelFilter::INFO),
            place,
        })
    }
}

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// No such option.
    #[error("{0:?} is not an option of this program")]
    Unknown(String),
    /// An option without its value.
    #[error("{0} needs a value")]
    NoValue(String),
    /// A needed option is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Bytes that are no text.
    #[error("an argument is not UTF-8 text")]
    NotText,
    /// An unknown level.
    #[error("{0:?} is no log level: error, warn, info or debug")]
    Level(String),
    /// A relative state directory.
    #[error("--state must be an absolute path")]
    Relative,
    /// Two places at once.
    #[error("--own-machine and --isolate exclude each other")]
    Places,
    /// A name for nothing.
    #[error("--hostname and --network go with --isolate only")]
    WorldAlone,
    /// No address.
    #[error("--listen cannot be used")]
    Listen(#[from] ListenError),
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: &str = "--user-data u --plugins p --state /s";

    fn parse(text: &str) -> Result<Command, UsageError> {
        Command::parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_full_command_line_is_read() {
        let Command::Run(args) = parse(&format!(
            "{NEEDED} --listen unix:///run/a.sock --log debug --isolate --hostname web --network /run/ns"
        ))
        .unwrap() else {
            panic!("no run")
        };
        assert_eq!(args.listen, Some(Listen::Unix("/run/a.sock".into())));
        assert_eq!(args.log, LevelFilter::DEBUG);
        let world = World { hostname: Some("web".into()), network: Some("/run/ns".into()) };
        assert_eq!(args.place, Place::Isolate(world));
    }

    #[test]
    fn nothing_of_the_machine_is_taken_unless_it_is_said() {
        let Command::Run(args) = parse(NEEDED).unwrap() else { panic!("no run") };
        assert_eq!(args.place, Place::Shared);
        assert_eq!((args.listen, args.log), (None, LevelFilter::INFO));
    }

    #[test]
    fn wrong_usage_is_told_in_one_sentence() {
        let cases = [
            ("--nope", "\"--nope\" is not an option of this program"),
            ("--plugins p --state /s", "--user-data is missing"),
            ("--user-data u --state /s", "--plugins is missing"),
            ("--user-data", "--user-data needs a value"),
            ("--user-data u --plugins p --state s", "--state must be an absolute path"),
        ];
        for (text, sentence) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), sentence);
        }
        for more in
            ["--own-machine --isolate", "--hostname x", "--network /n", "--log loud", "--listen x"]
        {
            assert!(parse(&format!("{NEEDED} {more}")).is_err(), "{more}");
        }
    }
}
