//! Runs the containers of a pod in its machine, for infranetes.

use std::process::ExitCode;
use std::sync::Arc;

use infranetes_agent::args::{Args, Command, Place, USAGE};
use infranetes_agent::invitation::Invitation;
use infranetes_agent::lines::{self, chain};
use infranetes_agent::plugins::Containers;
use infranetes_agent::run::Agent;
use infranetes_agent::times::BootTimes;
use infranetes_agent::{boot, isolate, pause, plugins, reaper};

fn main() -> ExitCode {
    let times = BootTimes::starting();
    if boot::is_first_process() {
        boot::run(times);
    }
    if let Some(module) = boot::wanted_module() {
        return match boot::load_wanted(&module) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("infranetes-agent: {}", chain(&error));
                ExitCode::FAILURE
            }
        };
    }
    let args = match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(args)) => args,
        Ok(Command::Pause) => return pause::run(),
        Ok(Command::PauseWithUsers) => return pause::run_with_users(),
        Ok(Command::Version) => {
            println!("infranetes-agent {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Command::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("infranetes-agent: {}\n{USAGE}", chain(&error));
            return ExitCode::from(2);
        }
    };
    let ended = match args.place {
        Place::Isolate(_) => isolate::keep(std::env::args_os().skip(1)).map_err(Into::into),
        _ => serve(args, times).map(|()| ExitCode::SUCCESS),
    };
    ended.unwrap_or_else(|error: Box<dyn std::error::Error>| {
        eprintln!("infranetes-agent: {}", chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

fn serve(args: Args, times: BootTimes) -> Result<(), Box<dyn std::error::Error>> {
    lines::start(args.log);
    if let Place::Isolated(world) = &args.place {
        isolate::enter(world)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let invitation = Invitation::take(&args.user_data)?;
        reaper::adopt()?;
        let reaper = tokio::spawn(reaper::run());
        let provider = plugins::load(&args.plugins, &args.state.join("plugins")).await?;
        let agent = Agent {
            invitation,
            listen: args.listen,
            containers: Containers::from(provider),
            state: args.state,
            owned: args.place != Place::Shared,
            apart: false,
            addresses: Vec::new(),
            times: Arc::new(times),
        };
        let served = agent.listen()?.serve().await;
        reaper.abort();
        Ok(served?)
    })
}
