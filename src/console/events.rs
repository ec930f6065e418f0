//! `GET /api/v1/events`: the whole status whenever it changes, and each notice, as server-sent events.
//!
//! Owner: the connection that listens. Invariants: the first events are who listens, the status as it is and the notices that are kept; a client
//! that listens slowly gets the newest status, never a queue of old ones; in silence the status is said again, so that nobody on the
//! way takes the connection for dead.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::control::Context;
use crate::observe::timeline::{Entry, Timeline};
use crate::proxy::port::{Asker, ByteStream};
use crate::types::Status;

/// Between two pictures at least.
const PAUSE: Duration = Duration::from_millis(250);
/// Between two signs of life, where nothing happens. Progress and ages move in it, too.
const BEAT: Duration = Duration::from_secs(10);

struct Listener {
    control: Arc<Context>,
    status: watch::Receiver<Arc<Status>>,
    news: broadcast::Receiver<Arc<Entry>>,
    /// Who listens, until they were told.
    you: Option<Bytes>,
    /// Of what is to be said before anything new.
    first: std::vec::IntoIter<Arc<Entry>>,
    told: Option<Instant>,
    changed: bool,
}

/// The stream of one listener.
pub(super) fn listen(control: Arc<Context>, timeline: &Timeline, asker: &Asker) -> ByteStream {
    let (kept, news) = timeline.follow();
    let status = control.watch();
    let first = kept.into_iter();
    let you = json!({ "key": asker.key, "admin": asker.admin, "keys": asker.keys });
    let you = Some(event("you", &you.to_string()));
    let listener = Listener { control, status, news, you, first, told: None, changed: true };
    Box::pin(stream::unfold(listener, |mut listener| async move {
        let bytes = listener.next().await?;
        Some((bytes, listener))
    }))
}

impl Listener {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(you) = self.you.take() {
            return Some(you);
        }
        if self.told.is_none() {
            return Some(self.picture());
        }
        if let Some(entry) = self.first.next() {
            return Some(notice(&entry));
        }
        loop {
            let due = self.told.map_or_else(Instant::now, |told| told + PAUSE);
            let beat = self.told.map_or_else(Instant::now, |told| told + BEAT);
            tokio::select! {
                biased;
                entry = self.news.recv() => match entry {
                    Ok(entry) => return Some(notice(&entry)),
                    // The numbers show the gap.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = tokio::time::sleep_until(due), if self.changed => return Some(self.picture()),
                changed = self.status.changed(), if !self.changed => match changed {
                    Ok(()) => self.changed = true,
                    Err(_) => return None,
                },
                () = tokio::time::sleep_until(beat), if !self.changed => return Some(self.picture()),
            }
        }
    }

    fn picture(&mut self) -> Bytes {
        self.status.mark_unchanged();
        self.changed = false;
        self.told = Some(Instant::now());
        event("status", &self.control.status_json())
    }
}

fn notice(entry: &Entry) -> Bytes {
    // Strings and numbers cannot fail to serialise.
    let json = serde_json::to_string(entry).unwrap_or_default();
    event("notice", &json)
}

/// One event; JSON on one line.
pub(super) fn event(name: &str, json: &str) -> Bytes {
    format!("event: {name}\ndata: {json}\n\n").into()
}
