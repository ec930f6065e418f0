//! Connections to engines that wait for their next request.
//!
//! Purpose: the next request need not connect. Owner: `forward`'s engines; the server sweeps, to its end. Invariants: none is kept for long; what
//! is taken was not closed as far as the kernel has told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::stream::Stream;
use crate::types::InstanceId;

/// Sweeps that a connection may live through: engines close one that was idle for 5 s, and whoever uses it at that moment loses the
/// race.
const SWEEPS_MAX: u8 = 2;
/// Kept for one instance.
const KEPT_MAX: usize = 1024;

/// Connections that wait for their next request, by the instance that they lead to. How long they have waited is counted in sweeps:
/// no request has to ask for the time.
#[derive(Debug, Default)]
pub(super) struct Pool {
    kept: Mutex<BTreeMap<InstanceId, Vec<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    stream: Stream,
    sweeps: u8,
}

impl Pool {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Vec<Kept>>> {
        // Held for a few instructions, by one thread; nothing that is done under it can panic half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is alive as far as can be told.
    pub fn take(&self, instance: &InstanceId) -> Option<Stream> {
        let mut kept = self.kept();
        let streams = kept.get_mut(instance)?;
        while let Some(Kept { stream, .. }) = streams.pop() {
            if stream.is_quiet() {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps one.
    pub fn put(&self, instance: &InstanceId, stream: Stream) {
        let mut kept = self.kept();
        let stream = Kept { stream, sweeps: 0 };
        match kept.get_mut(instance) {
            Some(streams) if streams.len() < KEPT_MAX => streams.push(stream),
            Some(_) => {}
            None => {
                kept.insert(instance.clone(), vec![stream]);
            }
        }
    }

    /// Closes those that waited too long, for as long as it is polled.
    pub async fn sweep_on(&self) {
        // After a pause of the whole thread all sweeps that were due are made up for, so that what has grown old meanwhile goes.
        let mut due = tokio::time::interval(SWEEP);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            due.tick().await;
            self.sweep();
        }
    }

    fn sweep(&self) {
        self.kept().retain(|_, streams| {
            streams.retain_mut(|kept| {
                kept.sweeps += 1;
                kept.sweeps <= SWEEPS_MAX
            });
            !streams.is_empty()
        });
    }
}

/// How often [`Pool::sweep`] is due.
const SWEEP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::super::upstream::connect;
    use super::*;
    use crate::supervisor::ports::Endpoint;

    fn instance() -> InstanceId {
        InstanceId::new("m".parse().unwrap(), crate::types::Generation(1), 1)
    }

    #[tokio::test]
    async fn a_kept_connection_is_taken_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let endpoint = Endpoint::Unix(path);
        let (pool, instance) = (Pool::default(), instance());
        assert!(pool.take(&instance).is_none());
        let open = connect(&endpoint, Duration::from_secs(5)).await.unwrap();
        let (held, _) = listener.accept().await.unwrap();
        pool.put(&instance, open);
        let open = pool.take(&instance).unwrap();
        pool.put(&instance, open);
        drop(held);
        // The end is known to the kernel; the runtime has to hear of it.
        let gone = async {
            while let Some(open) = pool.take(&instance) {
                pool.put(&instance, open);
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    }

    #[tokio::test]
    async fn none_is_kept_for_long() {
        let (one, _other) = tokio::net::UnixStream::pair().unwrap();
        let (pool, instance) = (Pool::default(), instance());
        pool.put(&instance, Stream::Unix(one));
        for _ in 0..SWEEPS_MAX {
            pool.sweep();
            assert!(!pool.kept().is_empty());
        }
        pool.sweep();
        assert!(pool.kept().is_empty());
    }
}
