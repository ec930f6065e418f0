//! Which instance gave which answer of `/v1/responses`.
//!
//! Purpose: an answer that was stored lives in the engine that gave it, and only there can it be had again or cancelled. Owner:
//! `service` holds one [`Answers`]; an answer on its way is watched by a [`Watch`]. Invariants: bounded in number and in time; an
//! identifier is taken from the engine's own bytes, which pass unchanged; whoever has another key does not find it.

mod asking;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use memchr::memmem;
use tokio::time::Instant;

pub(super) use asking::recall;

use crate::types::InstanceId;

/// Answers that are known at once; for a new one the oldest is forgotten of whoever has most of them.
const KNOWN_MAX: usize = 10_000;
/// How long an answer is known.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// An answer's identifier is among so many of its first bytes, or it is not found.
const LOOK_MAX: usize = 16 << 10;

/// Whose answer it is and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Who gave it.
    pub instance: InstanceId,
    /// The key's name of who asked.
    pub caller: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    origins: BTreeMap<String, (Origin, Instant)>,
    /// Each caller's, the oldest first.
    order: BTreeMap<Option<String>, VecDeque<String>>,
}

impl Inner {
    fn forget(&mut self, id: &str) {
        let Some((origin, _)) = self.origins.remove(id) else { return };
        if let Some(order) = self.order.get_mut(&origin.caller) {
            order.retain(|other| other != id);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        let Self { origins, order } = self;
        order.retain(|_, ids| {
            while let Some(id) = ids.front()
                && origins.get(id).is_none_or(|(_, at)| now - *at >= KNOWN_FOR)
            {
                origins.remove(id);
                ids.pop_front();
            }
            !ids.is_empty()
        });
    }
}

/// The answers that are known.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Inner>);

impl Answers {
    fn note(&self, id: String, origin: Origin, now: Instant) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.forget(&id);
        inner.order.entry(origin.caller.clone()).or_default().push_back(id.clone());
        inner.origins.insert(id, (origin, now));
        inner.forget_old(now);
        while inner.origins.len() > KNOWN_MAX {
            let most = inner.order.values_mut().max_by_key(|ids| ids.len());
            let Some(oldest) = most.and_then(VecDeque::pop_front) else { break };
            inner.origins.remove(&oldest);
        }
    }

    /// Where an answer is, for who asked for it.
    pub fn find(&self, id: &str, caller: Option<&str>, now: Instant) -> Option<Origin> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (origin, at) = inner.origins.get(id)?;
        let mine = origin.caller.as_deref() == caller;
        (mine && now - *at < KNOWN_FOR).then(|| origin.clone())
    }
}

/// Looks for the identifier in an answer that passes.
#[derive(Debug)]
pub(super) struct Watch {
    answers: Arc<Answers>,
    origin: Origin,
    seen: Vec<u8>,
    done: bool,
}

impl Watch {
    /// For an answer of `origin`'s.
    pub fn new(answers: Arc<Answers>, origin: Origin) -> Self {
        Self { answers, origin, seen: Vec::new(), done: false }
    }

    /// The next bytes of the answer.
    pub fn see(&mut self, data: &[u8]) {
        if self.done {
            return;
        }
        let room = LOOK_MAX - self.seen.len();
        self.seen.extend_from_slice(&data[..data.len().min(room)]);
        let id = identifier(&self.seen);
        self.done = id.is_some() || self.seen.len() >= LOOK_MAX;
        if let Some(id) = id {
            self.answers.note(id, self.origin.clone(), Instant::now());
        }
        if self.done {
            self.seen = Vec::new();
        }
    }
}

/// The first value of a key `id` that begins as identifiers of responses do, once it is there whole.
fn identifier(bytes: &[u8]) -> Option<String> {
    for at in memmem::find_iter(bytes, b"\"id\"") {
        let rest = bytes[at + 4..].trim_ascii_start();
        let Some(rest) = rest.strip_prefix(b":") else { continue };
        let Some(rest) = rest.trim_ascii_start().strip_prefix(b"\"") else { continue };
        let end = rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_' && *b != b'-');
        let Some(end) = end.filter(|end| rest[*end] == b'"' && *end <= 128) else { continue };
        if rest.starts_with(b"resp") {
            return String::from_utf8(rest[..end].to_vec()).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    fn origin(caller: Option<&str>) -> Origin {
        let instance = InstanceId::new("m".parse().unwrap(), Generation(1), 1);
        Origin { instance, caller: caller.map(str::to_owned) }
    }

    #[test]
    fn an_identifier_is_found_in_pieces_and_streams() {
        let body = b"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\": \"resp_a-1\",\"x\":1}}\n\n";
        for size in [1, 7, 300] {
            let answers = Arc::new(Answers::default());
            let mut watch = Watch::new(answers.clone(), origin(None));
            body.chunks(size).for_each(|piece| watch.see(piece));
            assert!(answers.find("resp_a-1", None, Instant::now()).is_some(), "{size}");
            assert!(watch.seen.is_empty());
        }
        assert_eq!(identifier(b"{\"id\":\"msg_1\",\"id\" :\"resp_2\"}"), Some("resp_2".into()));
        assert_eq!(identifier(b"{\"id\":\"resp_un"), None);
        assert_eq!(identifier(b"{\"id\":\"resp/../x\"}"), None);
    }

    #[test]
    fn only_so_much_is_looked_at() {
        let mut watch = Watch::new(Arc::default(), origin(None));
        for _ in 0..100 {
            watch.see(&[b'x'; 1000]);
        }
        assert!(watch.done && watch.seen.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten_in_time_and_for_newer_ones() {
        let answers = Answers::default();
        let start = Instant::now();
        answers.note("resp_0".into(), origin(Some("alice")), start);
        assert_eq!(answers.find("resp_0", Some("alice"), start), Some(origin(Some("alice"))));
        assert_eq!(answers.find("resp_0", Some("bob"), start), None);
        assert_eq!(answers.find("resp_0", None, start), None);
        assert_eq!(answers.find("resp_0", Some("alice"), start + KNOWN_FOR), None);
        for i in 1..=KNOWN_MAX {
            answers.note(format!("resp_{i}"), origin(None), start);
        }
        // Whoever asks much loses his own.
        assert!(answers.find("resp_0", Some("alice"), start).is_some());
        assert_eq!(answers.find("resp_1", None, start), None);
        assert!(answers.find("resp_2", None, start).is_some());
        // One that comes again counts once, and for its last caller.
        answers.note("resp_0".into(), origin(Some("bob")), start);
        assert_eq!(answers.find("resp_0", Some("alice"), start), None);
        assert!(answers.find("resp_2", None, start).is_some());
        assert!(!answers.0.lock().unwrap().order.contains_key(&Some("alice".to_owned())));
        answers.note("resp_new".into(), origin(None), start + KNOWN_FOR);
        assert_eq!(answers.0.lock().unwrap().origins.len(), 1);
    }
}
