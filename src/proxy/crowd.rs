//! Room for connections.
//!
//! ```text
//!   accepted ──room──▶ served                      who is waited for longest, and is not in the middle of a request, is asked to leave
//!            ──none──▶ waits in the doorway, one a way ──▶ served when somebody has left
//! ```
//! Purpose: how many are served at once, and who goes when more come. Owner: the server's accept loop. Invariants: who comes over TCP, by a
//! Unix socket or for monitoring takes no room from the others; of each there are never more than their bound; whose request is served
//! stays, and so does who comes back within a second, so nobody keeps others out by being idle. A connection counts as long as its [`Pulse`] is held: with a WebSocket,
//! until that ends.

use std::cmp::Reverse;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::conn::Pulse;
use super::stream::{Listener, Peer, Stream};

/// Connections for monitoring: its few clients ask every some seconds.
const MONITORING_MAX: usize = 64;

/// So often one who waits has somebody looked for anew.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// Who is let in.
#[derive(Debug)]
pub(super) struct Guest {
    pub stream: Stream,
    pub peer: Peer,
    pub pulse: Arc<Pulse>,
}

/// Those who come by one way.
#[derive(Debug)]
struct Way {
    max: usize,
    /// One more is held for each who is here.
    here: Arc<()>,
    pulses: Vec<Weak<Pulse>>,
    /// Who could go when it was looked last, and since when each is waited for; the longest is at the end. Whoever becomes idle later
    /// has been so for less.
    idle: Vec<(Instant, Weak<Pulse>)>,
    /// When that was.
    gathered: Option<Instant>,
    /// Has come, and has no room yet.
    next: Option<(Stream, Peer)>,
}

impl Way {
    fn new(max: usize) -> Self {
        let (pulses, idle) = (Vec::new(), Vec::new());
        Self { max, here: Arc::default(), pulses, idle, gathered: None, next: None }
    }

    fn count(&self) -> usize {
        Arc::strong_count(&self.here) - 1
    }

    fn has_room(&self) -> bool {
        self.count() < self.max
    }

    fn admit(&mut self) -> Option<Guest> {
        let (stream, peer) = self.next.take()?;
        let pulse = Pulse::new(self.here.clone());
        // Those who have left are struck off when they are half of all: at a price that does not depend on how many there are.
        if self.pulses.len() > 2 * self.count() + 64 {
            self.strike_off();
        }
        self.pulses.push(Arc::downgrade(&pulse));
        Some(Guest { stream, peer, pulse })
    }

    fn strike_off(&mut self) {
        self.pulses.retain(|pulse| pulse.strong_count() > 0);
    }

    /// Looks at all, which is seldom: only where none is left of those who were idle then, and not for each who comes.
    fn gather(&mut self, now: Instant) {
        if self.gathered.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return;
        }
        self.gathered = Some(now);
        self.strike_off();
        let idle = |pulse: &Weak<Pulse>| {
            let since = pulse.upgrade()?.waits_since(now)?;
            Some((since, pulse.clone()))
        };
        self.idle = self.pulses.iter().filter_map(idle).collect();
        self.idle.sort_unstable_by_key(|(since, _)| Reverse(*since));
    }

    /// Asks the one to leave that is waited for longest, if anybody waits here and is waited for.
    fn make_room(&mut self, now: Instant) {
        if self.next.is_none() || self.has_room() {
            return;
        }
        for look in [false, true] {
            if look {
                self.gather(now);
            }
            while let Some((since, pulse)) = self.idle.pop() {
                let idle = |pulse: &Arc<Pulse>| pulse.waits_since(now) == Some(since);
                if let Some(pulse) = pulse.upgrade().filter(idle) {
                    pulse.ask_to_leave();
                    return;
                }
            }
        }
    }
}

/// All who are here.
#[derive(Debug)]
pub(super) struct Crowd {
    ways: [Way; 3],
}

const TCP: usize = 0;
const UNIX: usize = 1;
const MONITORING: usize = 2;

impl Crowd {
    /// Nobody yet. `max`: connections over TCP, and as many by Unix sockets.
    pub fn new(max: usize) -> Self {
        Self { ways: [max, max, MONITORING_MAX].map(Way::new) }
    }

    /// Who comes next on any of the listeners, but for those by whose way somebody waits already. `turn` moves on with every connection, so
    /// that a busy listener cannot starve the others.
    ///
    /// # Errors
    /// As the kernel says.
    pub async fn comes(
        &self,
        listeners: &[Listener],
        turn: &mut usize,
    ) -> io::Result<(Stream, Peer)> {
        std::future::poll_fn(|cx| {
            for offset in 0..listeners.len() {
                let index = (*turn + offset) % listeners.len();
                let way = match &listeners[index] {
                    Listener::Tcp(_) => TCP,
                    Listener::Unix(_) => UNIX,
                    Listener::Scrapes(_) => MONITORING,
                };
                if self.ways[way].next.is_some() {
                    continue;
                }
                if let std::task::Poll::Ready(result) = listeners[index].poll_accept(cx) {
                    *turn = index + 1;
                    return std::task::Poll::Ready(result);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Somebody has come. Where there is no room for him (`false`), somebody who is idle is asked to leave.
    pub fn came(&mut self, (stream, peer): (Stream, Peer)) -> bool {
        let way = match peer {
            Peer::Loopback | Peer::Far => TCP,
            Peer::Unix => UNIX,
            Peer::Monitoring => MONITORING,
        };
        let way = &mut self.ways[way];
        way.next = Some((stream, peer));
        if !way.has_room() {
            way.make_room(Instant::now());
        }
        way.has_room()
    }

    /// One who waits, where there is room.
    pub fn let_in(&mut self) -> Option<Guest> {
        self.ways.iter_mut().find(|way| way.next.is_some() && way.has_room())?.admit()
    }

    /// One who waits, whether there is room or not: nobody comes after them.
    pub fn let_last_in(&mut self) -> Option<Guest> {
        self.ways.iter_mut().find_map(Way::admit)
    }

    /// Whether anybody waits for room.
    pub fn is_waiting(&self) -> bool {
        self.ways.iter().any(|way| way.next.is_some())
    }

    /// Has somebody leave for each who waits, if anybody can.
    pub fn make_room(&mut self, now: Instant) {
        self.ways.iter_mut().for_each(|way| way.make_room(now));
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Somebody who comes.
    fn comes(crowd: &mut Crowd, peer: Peer) -> Option<Guest> {
        let (_, door) = UnixStream::pair().unwrap();
        crowd.came((Stream::Unix(door), peer));
        crowd.let_in()
    }

    /// Who of them was asked to leave.
    fn asked(guests: &[Guest]) -> Vec<bool> {
        guests.iter().map(|guest| guest.pulse.is_asked()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_waited_for_longest_makes_room() {
        let mut crowd = Crowd::new(4);
        let mut guests: Vec<_> = (0..4).map(|_| comes(&mut crowd, Peer::Far).unwrap()).collect();
        // The second has idled longest, the last is served, the first takes its answer slowly.
        let held: Vec<_> = guests.iter().map(|guest| guest.pulse.busy()).collect();
        let [first, second, third, served] = <[_; 4]>::try_from(held).unwrap();
        for busy in [second, third, first] {
            tokio::time::advance(SECOND).await;
            drop(busy);
        }
        guests[0].pulse.wrote(true);
        tokio::time::advance(SECOND).await;
        assert!(comes(&mut crowd, Peer::Loopback).is_none() && crowd.is_waiting());
        assert_eq!(asked(&guests), [false, true, false, false]);
        // Requests have come meanwhile, and the next one is asked.
        let _second = guests[1].pulse.busy();
        crowd.make_room(Instant::now());
        assert_eq!(asked(&guests), [false, true, true, false]);
        let _third = guests[2].pulse.busy();
        crowd.make_room(Instant::now());
        assert_eq!(asked(&guests), [false, true, true, false], "nobody else can go");
        guests[0].pulse.wrote(false);
        tokio::time::advance(SECOND / 2).await;
        crowd.make_room(Instant::now());
        assert_eq!(
            asked(&guests),
            [false, true, true, false],
            "its next request may be on its way"
        );
        tokio::time::advance(SECOND / 2).await;
        crowd.make_room(Instant::now());
        assert_eq!(asked(&guests), [true, true, true, false]);
        assert!(crowd.let_in().is_none());
        guests.remove(0);
        assert!(crowd.let_in().is_some() && !crowd.is_waiting());
        drop(served);
    }

    /// Most heads are whole when they come: whoever is still at it after a second is waited for.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_makes_room_and_a_new_one_does_not() {
        let mut crowd = Crowd::new(1);
        let first = comes(&mut crowd, Peer::Far).unwrap();
        assert!(comes(&mut crowd, Peer::Far).is_none());
        crowd.make_room(Instant::now());
        assert!(!first.pulse.is_asked());
        tokio::time::advance(SECOND).await;
        crowd.make_room(Instant::now());
        assert!(first.pulse.is_asked());
    }

    #[tokio::test]
    async fn nobody_takes_the_room_of_those_who_come_by_another_way() {
        let mut crowd = Crowd::new(1);
        let ways = [Peer::Far, Peer::Unix, Peer::Monitoring];
        let _here = ways.map(|peer| comes(&mut crowd, peer).unwrap());
        assert!(comes(&mut crowd, Peer::Loopback).is_none(), "it comes by the way of the first");
        assert!(comes(&mut crowd, Peer::Unix).is_none());
        assert!(comes(&mut crowd, Peer::Monitoring).is_some(), "these have a bound of their own");
        assert!(crowd.let_last_in().is_some() && crowd.let_last_in().is_some());
        assert!(crowd.let_last_in().is_none() && !crowd.is_waiting());
    }

    #[tokio::test]
    async fn who_has_left_is_struck_off() {
        let mut crowd = Crowd::new(8);
        for _ in 0..1000 {
            assert!(comes(&mut crowd, Peer::Far).is_some());
        }
        assert!(crowd.ways[TCP].pulses.len() < 100);
        assert_eq!(crowd.ways[TCP].count(), 0);
    }
}
