//! `hostler logs`: what an engine wrote.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use tokio::io::AsyncReadExt as _;
use zbus::names::OwnedUniqueName;
use zbus::{OwnedFd, fdo};

use super::Context;
use super::bus::{Bus, Options, SERVICE, failure, not_running};
use super::exit::Outcome;
use super::printable::Printable;

/// Lines that following begins with.
const TAIL: u64 = 10;

/// Shows what a model's engine wrote, since its container was started: up to 64 MiB, and when they are full it begins anew, without what
/// was there. Of an engine that is gone: hostler show MODEL, and the journal.
#[derive(Debug, Args)]
pub struct Logs {
    /// Its name, or an alias.
    model: String,

    /// Go on with what comes, until the container ends.
    #[arg(short, long)]
    follow: bool,

    /// Only the last so many lines. Default: all; with --follow: 10.
    #[arg(short = 'n', long, value_name = "COUNT")]
    lines: Option<u64>,
}

impl Logs {
    pub async fn run(self, context: &Context) -> Outcome {
        context
            .out
            .no_document("logs", "hostler logs MODEL, which prints an engine's own lines")?;
        let bus = context.bus().await?;
        let daemon = daemon(&bus).await?;
        let model = bus.model(&self.model).await?;
        let mut options = Options::new();
        options.insert("follow", self.follow.into());
        if let Some(lines) = self.lines.or(self.follow.then_some(TAIL)) {
            options.insert("lines", lines.into());
        }
        let pipe: OwnedFd = bus.call(&model, "OpenLogWith", &(&options,)).await?;
        let pipe = std::os::fd::OwnedFd::from(pipe);
        let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe)?;
        let mut out = std::io::stdout();
        // Programs get the bytes.
        let mut printable = out.is_terminal().then(Printable::default);
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            let count = pipe.read(&mut buffer).await?;
            let read = buffer.get(..count).unwrap_or_default();
            match &mut printable {
                None => out.write_all(read)?,
                Some(printable) if count == 0 => out.write_all(&printable.end())?,
                Some(printable) => out.write_all(&printable.feed(read))?,
            }
            out.flush()?;
            if count == 0 {
                // A daemon that leaves takes its end of the pipe along, and may have left the container running.
                return if self.follow { still(&bus, &daemon).await } else { Ok(()) };
            }
        }
    }
}

/// The daemon that answers now, by the name that no later one has.
async fn daemon(bus: &Bus) -> Outcome<OwnedUniqueName> {
    let failed = |err: zbus::Error| failure(&err, bus.user);
    let names = fdo::DBusProxy::new(&bus.connection).await.map_err(failed)?;
    let name = SERVICE.try_into().map_err(failed)?;
    names.get_name_owner(name).await.map_err(|err| failed(err.into()))
}

/// Asked itself: the bus may not know yet that it has left.
async fn still(bus: &Bus, daemon: &OwnedUniqueName) -> Outcome {
    let (to, peer) = (Some(daemon.as_str()), Some("org.freedesktop.DBus.Peer"));
    let asked = bus.connection.call_method(to, bus.manager.path(), peer, "Ping", &()).await;
    asked.map(drop).map_err(|_| not_running(bus.user))
}
