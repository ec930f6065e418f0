//! The connection: made, kept, made again.
//!
//! Purpose: puts the objects on a bus, owns the name, and comes back with growing pauses when the bus went away or was never there.
//! Owner: one task of the composition root. Invariants: nothing here can stop or slow a request; while there is no bus a problem says
//! so (`bus_missing`: there was none yet; `bus_lost`: it went away), and goes away with its cause; what was written to the configuration
//! meanwhile is applied when the bus is back, as nobody could be told of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use zbus::connection::Builder;
use zbus::{Connection, fdo};

use super::job::Job;
use super::manager::Manager;
use super::sync::Publisher;
use super::{Context, NAME, path};

/// Between two attempts, at first.
const DELAY_MIN: Duration = Duration::from_millis(250);
/// And at last.
const DELAY_MAX: Duration = Duration::from_secs(10);
/// One attempt.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Between two looks at a status that keeps changing.
const PACE: Duration = Duration::from_millis(20);

/// Which bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bus {
    /// The system's.
    System,
    /// The user's.
    Session,
    /// One at this address; for tests.
    Address(String),
}

impl Bus {
    async fn connect(&self, context: &Arc<Context>) -> zbus::Result<Connection> {
        let builder = match self {
            Self::System => Builder::system(),
            Self::Session => Builder::session(),
            Self::Address(address) => Builder::address(address.as_str()),
        };
        builder
            .serve_at(path::ROOT, Manager::new(context.clone()))
            .serve_at(path::ROOT, fdo::ObjectManager)
            .build()
            .await
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::System => "the system bus",
            Self::Session => "the session bus",
            Self::Address(_) => "the bus",
        }
    }
}

/// Serves control on a bus until `stop`. `first` is told when the name is owned, or the first attempt has failed: then the daemon
/// may say that it is ready.
pub async fn run(
    context: Arc<Context>,
    bus: Bus,
    stop: CancellationToken,
    first: oneshot::Sender<()>,
) {
    let work = async {
        let mut first = Some(first);
        let mut code = "bus_missing";
        let mut delay = DELAY_MIN;
        loop {
            let attempt = tokio::time::timeout(CONNECT_TIME, open(&context, &bus)).await;
            let attempt =
                attempt.unwrap_or_else(|_| Err(zbus::Error::Failure("it does not answer".into())));
            let why = match attempt {
                Ok(publisher) => {
                    context.handle.problem("bus_missing", None);
                    context.handle.problem("bus_lost", None);
                    tracing::info!("control is on {} as {NAME}", bus.name());
                    if first.take().is_none_or(|first| first.send(()).is_err()) {
                        let host = context.host.clone();
                        tokio::spawn(async move { host.catch_up().await });
                    }
                    (code, delay) = ("bus_lost", DELAY_MIN);
                    serve(&context, publisher).await
                }
                Err(err) => err.to_string(),
            };
            context.jobs.set_bus(None);
            let message = format!("there is no control over {}, retrying: {why}", bus.name());
            tracing::warn!(code, "{message}");
            context.handle.problem(code, Some(message));
            first.take().map(|first| first.send(()));
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(DELAY_MAX);
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Connects, puts up all objects, and takes the name: whoever sees the name finds the objects.
async fn open(context: &Arc<Context>, bus: &Bus) -> zbus::Result<(Connection, Publisher)> {
    let connection = bus.connect(context).await?;
    let publisher = Publisher::start(context.clone(), connection.clone()).await?;
    for job in context.jobs.all() {
        let object = Job::new(context.clone(), job.id);
        connection.object_server().at(path::job(job.id), object).await?;
    }
    context.jobs.set_bus(Some(connection.clone()));
    connection.request_name(NAME).await?;
    Ok((connection, publisher))
}

/// Says what changes, until the connection ends; why it did.
async fn serve(context: &Context, (bus, mut publisher): (Connection, Publisher)) -> String {
    let mut changes = context.handle.watch();
    loop {
        let due = publisher.hot_due();
        tokio::select! {
            () = bus.closed() => return "the connection was closed".to_owned(),
            changed = changes.changed() => {
                if changed.is_err() {
                    // The supervisor has ended, and the daemon is about to.
                    return "the daemon ends".to_owned();
                }
            }
            () = async { tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)).await }, if due.is_some() => {}
        }
        changes.borrow_and_update();
        if let Err(err) = publisher.publish().await {
            return err.to_string();
        }
        tokio::time::sleep(PACE).await;
    }
}
