//! The program `infranetes-agent`, in each of its forms: the first process of a guest, the kernel's helper for modules, a service, the
//! first process of a pid namespace that containers share.

use std::process::ExitCode;
use std::sync::Arc;

use crate::args::{Args, Command, Place, USAGE};
use crate::invitation::Invitation;
use crate::lines::{self, chain};
use crate::plugins::{Containers, Open};
use crate::run::Agent;
use crate::times::BootTimes;
use crate::{boot, isolate, pause, reaper};

/// Does what its name and arguments ask for. `open` gives the container provider.
pub fn run(open: Open) -> ExitCode {
    let times = BootTimes::starting();
    if boot::is_first_process() {
        boot::run(times, open);
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
        _ => serve(args, times, open).map(|()| ExitCode::SUCCESS),
    };
    ended.unwrap_or_else(|error: Box<dyn std::error::Error>| {
        eprintln!("infranetes-agent: {}", chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

fn serve(args: Args, times: BootTimes, open: Open) -> Result<(), Box<dyn std::error::Error>> {
    lines::start(args.log);
    if let Place::Isolated(world) = &args.place {
        isolate::enter(world)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let invitation = Invitation::take(&args.user_data)?;
        reaper::adopt()?;
        let reaper = tokio::spawn(reaper::run());
        let provider = open(args.plugins, args.state.join("plugins")).await?;
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
