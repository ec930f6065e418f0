//! hostler-testhost: a test host by hand, as the demo uses it. It lives until `stop`.

use std::path::Path;
use std::process::ExitCode;
use testhost::{Error, Host, Suite};

const USAGE: &str = "usage: hostler-testhost COMMAND ...
  boot NAME [SUITE]      boot a host (trixie, or bookworm), unless it runs
  install NAME BINDIR    install the Debian package of the checkout and of BINDIR's binaries
  load NAME ARCHIVE      load an image archive into the service user's podman
  copy NAME FILE DIR     copy a file into a directory of the host
  exec NAME PROGRAM ...  run a program as root in the host
  user NAME USER PROGRAM ...  run a program in that user's manager
  stop NAME              end the host and remove all that it had
  hold                   boot a host without a name, tell where it is, and end it when the input ends";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hostler-testhost: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(words: &[&str]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match words {
        ["boot", name] => boot(name, Suite::default())?,
        ["boot", name, suite] => {
            boot(name, Suite::named(suite).ok_or_else(|| format!("no suite {suite}"))?)?;
        }
        ["stop", name] => Host::stop(name)?,
        ["hold"] => {
            let host = Host::builder().boot()?;
            let (cgroup, scratch) = (host.cgroup().display(), host.scratch().display());
            println!("{}\t{cgroup}\t{scratch}\t{}", host.id(), host.leader());
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
        }
        ["install", name, bindir] => attach(name)?.install(Path::new(bindir))?,
        ["load", name, archive] => attach(name)?.load_image(Path::new(archive))?,
        ["copy", name, file, dir] => attach(name)?.copy_in(Path::new(file), dir)?,
        ["exec", name, program, rest @ ..] => {
            return exit(attach(name)?.command(program).args(rest));
        }
        ["user", name, user, program, rest @ ..] => {
            return exit(attach(name)?.user_command(user, program).args(rest));
        }
        _ => return Err(USAGE.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn boot(name: &str, suite: Suite) -> Result<(), Error> {
    if Host::attach(name)?.is_none() {
        Host::builder().persistent(name).suite(suite).boot()?;
    }
    Ok(())
}

fn attach(name: &str) -> Result<Host, Box<dyn std::error::Error>> {
    Ok(Host::attach(name)?.ok_or_else(|| format!("no host {name} runs: boot it first"))?)
}

/// Runs a command on our own streams and ends as it ended.
fn exit(command: &mut std::process::Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let status =
        command.status().map_err(|source| Error::Spawn { program: "nsenter".into(), source })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, Into::into))
}
