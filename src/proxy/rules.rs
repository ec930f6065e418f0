//! What the front door was told by the configuration.
//!
//! Purpose: plain data that requests are judged by: who may come in, from where, and what is particular to a model. Owner: the
//! composition root makes one and may put a new one in its place at any time ([`SharedRules`]); a request takes one `Arc` and
//! keeps to it. Invariant: nothing here changes once it is made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::external::External;
use super::keys::Key;
use crate::types::{Bytes, DoorSpec, ModelName};

/// The rules in force, for who serves by them and who replaces them.
pub type SharedRules = Arc<InForce>;

/// The rules in force; replaced whole, read without a lock.
#[derive(Debug)]
pub struct InForce {
    rules: ArcSwap<Rules>,
    replaced: watch::Sender<()>,
}

impl InForce {
    /// Those of this moment.
    pub fn load(&self) -> Guard<Arc<Rules>> {
        self.rules.load()
    }

    /// The same, to be kept.
    pub fn load_full(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Puts others in their place.
    pub fn store(&self, rules: Arc<Rules>) {
        self.rules.store(rules);
        self.replaced.send_replace(());
    }

    /// Changes whenever that is done, from now on.
    pub(super) fn replaced(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }
}

/// All rules.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who may come in; empty: everybody who can connect.
    pub keys: Vec<Key>,
    /// Names that `Host` may have, without ports, in lower case; empty: any.
    pub hosts: Vec<String>,
    /// Origins of pages that may ask from a browser; `*`: any; empty: none.
    pub origins: Vec<String>,
    /// What is particular to a model, by its name.
    pub models: BTreeMap<ModelName, Arc<DoorSpec>>,
    /// Models that run elsewhere; each is among `models`, too.
    pub externals: BTreeMap<ModelName, Arc<External>>,
    /// Aliases.
    pub aliases: BTreeMap<ModelName, ModelName>,
    /// How long a stream's client waits in silence; after that it gets its 200 and signs of life.
    pub feedback_after: Duration,
    /// Between two signs of life.
    pub feedback_interval: Duration,
    /// The longest a stream with signs of life waits for its model.
    pub stream_wait: Duration,
    /// The longest any other request waits: for its turn at a model that serves as many as it may, and for the model.
    pub max_wait: Duration,
    /// Requests that may wait for their turn at one model.
    pub max_queue: usize,
    /// Bytes of requests' bodies that are held at once, over all connections.
    pub max_buffered: Bytes,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            hosts: Vec::new(),
            origins: Vec::new(),
            models: BTreeMap::new(),
            externals: BTreeMap::new(),
            aliases: BTreeMap::new(),
            feedback_after: Duration::from_millis(1500),
            feedback_interval: Duration::from_secs(5),
            stream_wait: Duration::from_secs(3600),
            max_wait: Duration::from_secs(240),
            max_queue: 512,
            max_buffered: Bytes::gib(1),
        }
    }
}

impl Rules {
    /// A model's own name, for a name or alias of it; `None`: nobody has that name.
    pub fn resolve(&self, name: &str) -> Option<&ModelName> {
        let known = self.models.get_key_value(name).map(|(name, _)| name);
        known.or_else(|| self.aliases.get(name))
    }

    /// Whether that model runs elsewhere.
    pub(super) fn is_far(&self, name: &str) -> bool {
        self.resolve(name).is_some_and(|name| self.externals.contains_key(name))
    }

    /// To share them.
    #[must_use]
    pub fn shared(self) -> SharedRules {
        Arc::new(InForce { rules: ArcSwap::from_pointee(self), replaced: watch::Sender::new(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_lead_to_the_model() {
        let name = |n: &str| -> ModelName { n.parse().unwrap() };
        let rules = Rules {
            models: BTreeMap::from([(name("org/a"), Arc::default())]),
            aliases: BTreeMap::from([(name("b"), name("org/a"))]),
            ..Rules::default()
        };
        assert_eq!(rules.resolve("org/a"), Some(&name("org/a")));
        assert_eq!(rules.resolve("b"), Some(&name("org/a")));
        assert_eq!(rules.resolve("c"), None);
        assert_eq!(rules.resolve(""), None);
    }
}
