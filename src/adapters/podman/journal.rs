//! What was begun, written down before it is begun.
//!
//! ```text
//!   hostler-journal 2 <CRC32C, 8 hex digits> <bytes of the body>\n
//!   {"boot":"…","generation":7,"entries":[{"container":"…","labels":{…}}, …],"pins":{"qwen":true}}
//! ```
//! Purpose: what the host itself does not know, or may forget. A container that podman does not know any more (its directories were
//! wiped, or it believes in a reboot) lives on in a control group that only its ID names; and a directory for an engine's
//! socket has no labels. All else is read from labels, which cannot disagree with the host. Generations are counted here too,
//! so that none is given twice, also after the last container is gone; and pins that operators gave or took, which labels cannot
//! say, for podman does not change those of a container. (Format 1 had no pins.)
//!
//! Owner: the adapter. Invariants: an intent is on the disk before podman is asked to create, and the container's ID before
//! podman is asked to start it: before that nothing runs. Entries and pins of another boot are void. A disk that takes nothing stops
//! nobody: it is said, and labels serve alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::labels;
use crate::supervisor::ports::Shelf;
use crate::types::sealed::{self, SealError};
use crate::types::{Generation, InstanceId, ModelName};

const MAGIC: &str = "hostler-journal";
const VERSION: u32 = 2;
/// How long the disk may take. Nobody is ever kept from a start by it.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// One incarnation that was begun and is not known to be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// podman's ID, from the moment that it is known.
    pub container: Option<String>,
    /// Those that its container has, or was to get.
    pub labels: BTreeMap<String, String>,
    /// Somebody in this process cares for it: a launch, or the core, which has been told of it.
    #[serde(skip)]
    pub cared_for: bool,
}

/// The journal, as it is on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The boot that the entries are of.
    boot: String,
    /// The highest that was given to an incarnation.
    generation: Generation,
    entries: Vec<Entry>,
    /// Models that operators pinned, or let go, otherwise than the configuration says.
    #[serde(default)]
    pins: BTreeMap<ModelName, bool>,
}

/// Why bytes are no journal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It does not begin as one does.
    #[error("it does not begin with a header line \"{MAGIC} …\"")]
    Foreign,
    /// The header or the body is not what was written.
    #[error("its content does not match its checksum: it was cut off or changed")]
    Damaged,
    /// Intact, but of a later Hostler.
    #[error("it was written by a newer version of Hostler (format {0}; this one reads {VERSION})")]
    Newer(u32),
    /// Intact, but not understood.
    #[error("its content is not understood: {0}")]
    Body(String),
}

impl Record {
    /// The record in `bytes`.
    ///
    /// # Errors
    /// Where they are not what a journal of this version is.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (version, body) = sealed::open(MAGIC, bytes).map_err(|seal| match seal {
            SealError::Foreign => RecordError::Foreign,
            SealError::Damaged => RecordError::Damaged,
        })?;
        if version > VERSION {
            return Err(RecordError::Newer(version));
        }
        serde_json::from_slice(body).map_err(|e| RecordError::Body(e.to_string()))
    }

    /// The record as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Strings and numbers cannot fail to serialise; an empty body would be read as damage.
        sealed::seal(MAGIC, VERSION, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// What of it is true in the boot `boot`: of another one, the generation alone; its processes are gone.
    #[must_use]
    pub fn of_boot(mut self, boot: &str) -> Self {
        if self.boot != boot {
            self.entries.clear();
            self.pins.clear();
            boot.clone_into(&mut self.boot);
        }
        self
    }

    /// The highest generation that was ever given.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What operators said about pins.
    #[must_use]
    pub fn pins(&self) -> &BTreeMap<ModelName, bool> {
        &self.pins
    }

    /// How many incarnations were begun and are not known to be gone.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The journal, and where it is written.
pub(super) struct Journal {
    record: Mutex<Record>,
    shelf: Option<Arc<dyn Shelf>>,
    /// One write after the other, each of the newest content.
    writing: tokio::sync::Mutex<()>,
    failing: AtomicBool,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Journal {
    pub(super) fn new(record: Record, shelf: Option<Arc<dyn Shelf>>) -> Self {
        let writing = tokio::sync::Mutex::default();
        Self { record: Mutex::new(record), shelf, writing, failing: AtomicBool::new(false) }
    }

    /// An incarnation is about to be created.
    pub(super) async fn begin(&self, labels: BTreeMap<String, String>) {
        let generation = labels::identity(&labels).map_or(Generation(0), |i| i.instance.generation);
        {
            let mut record = self.record();
            record.generation = record.generation.max(generation);
            record.entries.push(Entry { container: None, labels, cared_for: true });
        }
        self.write().await;
    }

    /// It was created and is about to be started.
    pub(super) async fn identified(&self, instance: &InstanceId, container: &str) {
        let changed = self.record().of(instance).is_some_and(|entry| {
            entry.container.replace(container.to_owned()).as_deref() != Some(container)
        });
        if changed {
            self.write().await;
        }
    }

    /// Nothing of it is left.
    pub(super) async fn end(&self, gone: impl Fn(&Entry) -> bool) {
        let changed = {
            let mut record = self.record();
            let before = record.entries.len();
            record.entries.retain(|entry| !gone(entry));
            record.entries.len() != before
        };
        if changed {
            self.write().await;
        }
    }

    /// podman's ID of an incarnation's container.
    pub(super) fn container(&self, instance: &InstanceId) -> Option<String> {
        self.record().of(instance)?.container.clone()
    }

    /// Takes note of containers that podman knows, `(ID, labels)`. Returns what is open and nobody cares for: of that, from
    /// now on the caller does.
    pub(super) async fn survey(
        &self,
        listed: &[(String, BTreeMap<String, String>)],
        namespace: &str,
    ) -> Vec<Entry> {
        let (changed, orphans) = self.record().survey(listed, namespace);
        // A look is also another try where the last write failed.
        if changed || self.failing.load(Ordering::Relaxed) {
            self.write().await;
        }
        orphans
    }

    /// What operators say about pins now; whether that is news, and so has to be written.
    pub(super) fn pin(&self, pins: BTreeMap<ModelName, bool>) -> bool {
        let mut record = self.record();
        let changed = record.pins != pins;
        record.pins = pins;
        changed
    }

    pub(super) async fn write(&self) {
        let Some(shelf) = &self.shelf else { return };
        let _one = self.writing.lock().await;
        let bytes = self.record().encode();
        let saved = tokio::time::timeout(WRITE_TIME, shelf.save(bytes)).await;
        let failed = match saved {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("the disk took longer than {WRITE_TIME:?}")),
        };
        let failing = self.failing.swap(failed.is_some(), Ordering::Relaxed);
        if let (Some(why), false) = (failed, failing) {
            tracing::warn!(
                "the journal cannot be written, going on by the containers' labels alone: {why}"
            );
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Each use is a single call on the record: a panic cannot leave it half-changed.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn of(&mut self, instance: &InstanceId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.is_of(instance))
    }

    fn survey(
        &mut self,
        listed: &[(String, BTreeMap<String, String>)],
        namespace: &str,
    ) -> (bool, Vec<Entry>) {
        let mut changed = false;
        for (id, labels) in listed {
            let name = labels::identity(labels).map(|identity| identity.instance);
            // Damaged labels are of nobody: it is removed by its ID.
            let Some(name) = name else { continue };
            match self.of(&name) {
                Some(entry) => {
                    changed |= entry.container.as_deref() != Some(id);
                    entry.container = Some(id.clone());
                    entry.cared_for = true;
                }
                None => {
                    changed = true;
                    let (container, labels) = (Some(id.clone()), labels.clone());
                    self.entries.push(Entry { container, labels, cared_for: true });
                }
            }
        }
        let ours = |labels: &BTreeMap<String, String>| {
            labels.get(labels::NAMESPACE).is_some_and(|n| n == namespace)
        };
        let open = self.entries.iter_mut().filter(|e| !e.cared_for && ours(&e.labels));
        let orphans = open.map(|entry| {
            entry.cared_for = true;
            entry.clone()
        });
        (changed, orphans.collect())
    }
}

impl Entry {
    pub(super) fn is_of(&self, instance: &InstanceId) -> bool {
        labels::identity(&self.labels).is_some_and(|identity| identity.instance == *instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::podman::create::tests::spec;
    use crate::supervisor::ports::PortFuture;
    use crate::types::Transport;

    /// A shelf that keeps what it is given.
    #[derive(Default)]
    struct Kept(Mutex<Vec<Vec<u8>>>);

    impl Shelf for Kept {
        fn save(&self, bytes: Vec<u8>) -> PortFuture<'_, Result<(), String>> {
            self.0.lock().unwrap().push(bytes);
            Box::pin(async { Ok(()) })
        }
    }

    impl Kept {
        fn last(&self) -> Record {
            Record::decode(self.0.lock().unwrap().last().unwrap()).unwrap()
        }
    }

    fn labels() -> (InstanceId, BTreeMap<String, String>) {
        let spec = spec(Transport::Unix);
        (spec.instance.clone(), labels::to_labels(&spec, "ns"))
    }

    #[tokio::test]
    async fn an_intent_is_written_before_and_struck_after() {
        let shelf = Arc::new(Kept::default());
        let journal = Journal::new(Record::default().of_boot("b"), Some(shelf.clone()));
        let (instance, labels) = labels();
        journal.begin(labels.clone()).await;
        assert_eq!(shelf.last().entries[0].container, None);
        assert_eq!(shelf.last().generation(), instance.generation);
        journal.identified(&instance, "abc").await;
        assert_eq!(shelf.last().entries[0].container.as_deref(), Some("abc"));
        assert_eq!(journal.container(&instance).as_deref(), Some("abc"));
        // It is in good hands, so a look at podman does not make an orphan of it.
        assert_eq!(journal.survey(&[], "ns").await, []);

        // The next daemon finds it open, once; and not where it is another boot, or not its own.
        let next = |boot: &str| Journal::new(shelf.last().of_boot(boot), None);
        assert_eq!(next("other").survey(&[], "ns").await, []);
        assert_eq!(shelf.last().of_boot("other").generation(), instance.generation);
        assert_eq!(next("b").survey(&[], "another").await, []);
        assert_eq!(next("b").survey(&[("abc".to_owned(), labels.clone())], "ns").await, []);
        let later = next("b");
        assert_eq!(later.survey(&[], "ns").await.len(), 1);
        assert_eq!(later.survey(&[], "ns").await, []);

        journal.end(|entry| entry.is_of(&instance)).await;
        assert!(shelf.last().is_empty());
    }

    #[tokio::test]
    async fn pins_are_kept_until_the_next_boot() {
        let shelf = Arc::new(Kept::default());
        let journal = Journal::new(Record::default().of_boot("b"), Some(shelf.clone()));
        let pins = BTreeMap::from([("m".parse().unwrap(), true), ("n".parse().unwrap(), false)]);
        assert!(journal.pin(pins.clone()));
        journal.write().await;
        assert!(!journal.pin(pins.clone()), "no news");
        assert_eq!(*shelf.last().of_boot("b").pins(), pins);
        assert!(shelf.last().of_boot("other").pins().is_empty());
        // What is written for another reason has them too.
        journal.begin(labels().1).await;
        assert_eq!(*shelf.last().pins(), pins);
        // Written by a daemon that knew of none.
        let old = sealed::seal(MAGIC, 1, br#"{"boot":"b","generation":7,"entries":[]}"#);
        assert!(Record::decode(&old).unwrap().pins().is_empty());
    }

    #[test]
    fn damage_is_told_from_content() {
        let good = Record::default().of_boot("b").encode();
        assert_eq!(Record::decode(&good).unwrap().len(), 0);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Record::decode(&bad).is_err(), "byte {at}");
        }
        let newer = sealed::seal(MAGIC, VERSION + 1, b"?");
        assert_eq!(Record::decode(&newer), Err(RecordError::Newer(VERSION + 1)));
        let strange = sealed::seal(MAGIC, VERSION, b"[]");
        assert!(matches!(Record::decode(&strange), Err(RecordError::Body(_))));
        assert_eq!(Record::decode(b"#!/bin/sh"), Err(RecordError::Foreign));
    }
}
