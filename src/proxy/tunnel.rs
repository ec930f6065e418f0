//! A WebSocket that is open.
//!
//! Purpose: carry bytes both ways, and know how it ended. Owner: a task of its own that the service's tracker counts. Invariants: the lease
//! and the request's record live as long as the socket; either side's end ends the other, soon, whether it listens or not; of frames only
//! the heads are looked at ([`Frames`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::Either;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::frames::Frames;
use super::grant::Grant;
use super::port::Side;
use super::record::{Piece, Record};
use super::service::Service;
use super::upstream::Conn;

/// After one side's end, so long the other may take to end too. Neither may hold the lease, the turn and the connection any longer.
const LAST_FRAMES: Duration = Duration::from_secs(5);

/// Bytes that are carried at once.
const PIECE: usize = 8 << 10;

/// A socket whose opening both sides have agreed on.
pub(super) struct Tunnel {
    client: OnUpgrade,
    engine: Conn,
    grant: Grant,
    house: House,
}

/// When the socket is over the house has room for another client, and is told.
struct House {
    counted: Option<TaskTrackerToken>,
    service: Arc<Service>,
}

impl Drop for House {
    fn drop(&mut self) {
        drop(self.counted.take());
        self.service.closed.notify_one();
    }
}

/// Who ended it without having said so, and how that was seen.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    by: Side,
    why: String,
}

impl Tunnel {
    pub fn new(client: OnUpgrade, engine: Conn, grant: Grant, service: Arc<Service>) -> Self {
        let house = House { counted: Some(service.tunnels.token()), service };
        Self { client, engine, grant, house }
    }

    /// Carries, from now on. The record ends with it.
    pub fn begin(self, record: Box<Record>) {
        tokio::spawn(self.run(record));
    }

    async fn run(self, mut record: Box<Record>) {
        let Self { client, engine, grant, house } = self;
        let Service { cut, limits, .. } = &*house.service;
        let sent = |bytes| record.sent(bytes, Piece::Part);
        let over = tokio::select! {
            over = carry(client, engine, grant, limits.stall_timeout, sent) => over,
            () = cut.cancelled() => Err(Cut { by: Side::Host, why: "the daemon ends".to_owned() }),
        };
        match over {
            Ok(()) => record.complete(),
            Err(Cut { by, why }) => {
                record.broken_by = Some(by);
                record.fault = (by == Side::Engine).then_some(why);
            }
        }
        drop(house);
    }
}

/// Carries bytes until a side has ended and the other had time for it, or one has failed. `sent`: so many went to the client.
async fn carry(
    client: OnUpgrade,
    engine: Conn,
    grant: Grant,
    stall: Duration,
    mut sent: impl FnMut(usize),
) -> Result<(), Cut> {
    // Dropped last: the order of these ends is that of a relay.
    let _held = grant;
    let gone = |error: &dyn std::fmt::Display| Cut { by: Side::Client, why: error.to_string() };
    let mut client = TokioIo::new(client.await.map_err(|error| gone(&error))?);
    let (engine, early) = engine.into_parts();
    client.write_all(&early).await.map_err(|error| gone(&error))?;
    sent(early.len());
    let mut frames = Frames::default();
    frames.pass(&early);
    both_ways(client, (engine, frames), stall, sent).await
}

/// Carries bytes both ways. What a side has sent before its end arrives; after it the other is given [`LAST_FRAMES`]. A side that takes
/// nothing of what waits for it for as long as `stall` ends both.
///
/// # Errors
/// Who ended it, where neither side had said before that it is to end.
async fn both_ways(
    client: impl AsyncRead + AsyncWrite,
    (engine, said): (impl AsyncRead + AsyncWrite, Frames),
    stall: Duration,
    mut sent: impl FnMut(usize),
) -> Result<(), Cut> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_engine, mut to_engine) = tokio::io::split(engine);
    let parting = AtomicBool::new(said.is_parting());
    // Of either side: the other one answers it, and either may then be the first to close.
    let look = |frames: &mut Frames, bytes: &[u8]| {
        frames.pass(bytes);
        if frames.is_parting() {
            parting.store(true, Ordering::Relaxed);
        }
    };
    let (mut asked, mut answered) = (Frames::default(), said);
    let there = one_way(&mut from_client, &mut to_engine, stall, |bytes| look(&mut asked, bytes));
    let back = one_way(&mut from_engine, &mut to_client, stall, |bytes| {
        sent(bytes.len());
        look(&mut answered, bytes);
    });
    let (there, back) = (std::pin::pin!(there), std::pin::pin!(back));
    let first = futures_util::future::select(there, back).await;
    let agreed = parting.load(Ordering::Relaxed);
    let left = |by| Cut { by, why: format!("the {} left without a close frame", by.as_str()) };
    let cut = match first {
        Either::Left((Ok(()), back)) => {
            drop(tokio::time::timeout(LAST_FRAMES, back).await);
            left(Side::Client)
        }
        Either::Right((Ok(()), there)) => {
            drop(tokio::time::timeout(LAST_FRAMES, there).await);
            left(Side::Engine)
        }
        // Nobody reads there any more.
        Either::Left((Err(failed), _)) => failed.of(Side::Client, Side::Engine),
        Either::Right((Err(failed), _)) => failed.of(Side::Engine, Side::Client),
    };
    if agreed { Ok(()) } else { Err(cut) }
}

/// Why bytes are carried no further.
enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl Failed {
    fn of(self, from: Side, to: Side) -> Cut {
        let (by, error) = match self {
            Self::Reading(error) => (from, error),
            Self::Writing(error) => (to, error),
        };
        Cut { by, why: format!("the {}'s side of the WebSocket failed: {error}", by.as_str()) }
    }
}

/// Carries bytes one way, and then the end. `see` is shown them.
async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    stall: Duration,
    mut see: impl FnMut(&[u8]),
) -> Result<(), Failed> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await.map_err(Failed::Reading)?;
        see(&piece[..read]);
        pass(&piece[..read], to, stall).await.map_err(Failed::Writing)?;
        if read == 0 {
            return Ok(());
        }
    }
}

/// Writes all of it; nothing: the end.
async fn pass(
    mut rest: &[u8],
    to: &mut (impl AsyncWrite + Unpin),
    stall: Duration,
) -> io::Result<()> {
    if rest.is_empty() {
        return tokio::time::timeout(stall, to.shutdown()).await?;
    }
    while !rest.is_empty() {
        let taken = tokio::time::timeout(stall, to.write(rest)).await??;
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = &rest[taken..];
    }
    tokio::time::timeout(stall, to.flush()).await?
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::*;

    const STALL: Duration = Duration::from_secs(300);

    /// Either side ends, the other neither ends nor says a word: it has what was sent, and its time, and no more.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_close_is_cut_after_the_others_end() {
        for engine_ends in [true, false] {
            let ((mut client, ours), (theirs, mut engine)) = (duplex(64), duplex(64));
            let carried = tokio::spawn(both_ways(ours, (theirs, Frames::default()), STALL, |_| {}));
            let (ends, stays) =
                if engine_ends { (&mut engine, &mut client) } else { (&mut client, &mut engine) };
            ends.write_all(b"last words").await.unwrap();
            ends.shutdown().await.unwrap();
            let since = Instant::now();
            let mut heard = String::new();
            stays.read_to_string(&mut heard).await.unwrap();
            assert_eq!((heard.as_str(), since.elapsed()), ("last words", Duration::ZERO));
            let cut = carried.await.unwrap().unwrap_err();
            assert_eq!(cut.by, if engine_ends { Side::Engine } else { Side::Client });
            assert_eq!(since.elapsed(), LAST_FRAMES);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_the_others_end_passes() {
        let ((mut client, ours), (theirs, mut engine)) = (duplex(64), duplex(64));
        let carried = tokio::spawn(both_ways(ours, (theirs, Frames::default()), STALL, |_| {}));
        let since = Instant::now();
        client.shutdown().await.unwrap();
        assert_eq!(engine.read(&mut [0]).await.unwrap(), 0);
        engine.write_all(b"bye").await.unwrap();
        drop(engine);
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(carried.await.unwrap().unwrap_err().by, Side::Client);
        assert_eq!((heard.as_str(), since.elapsed()), ("bye", Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_of_what_waits_is_cut() {
        let ((client, ours), (theirs, mut engine)) = (duplex(64), duplex(64));
        let since = Instant::now();
        let carried = tokio::spawn(both_ways(ours, (theirs, Frames::default()), STALL, |_| {}));
        let says = async {
            while engine.write_all(&[0; 64]).await.is_ok() {}
            since.elapsed()
        };
        assert_eq!(says.await, STALL);
        assert_eq!(carried.await.unwrap().unwrap_err().by, Side::Client);
        drop(client);
    }

    /// Whoever closes first: a side has said before that it ends.
    #[tokio::test(start_paused = true)]
    async fn an_end_that_was_agreed_on_is_nobodys_fault() {
        let (masked, plain) =
            (b"\x88\x82\0\0\0\0\x03\xe8".as_slice(), b"\x88\x02\x03\xe8".as_slice());
        for (engine_says, engine_ends) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let ((mut client, ours), (theirs, mut engine)) = (duplex(64), duplex(64));
            let mut count = 0;
            let carried = both_ways(ours, (theirs, Frames::default()), STALL, |n| count += n);
            let talk = async {
                let (says, hears) = if engine_says {
                    (&mut engine, &mut client)
                } else {
                    (&mut client, &mut engine)
                };
                let frame = if engine_says { plain } else { masked };
                says.write_all(frame).await.unwrap();
                let mut heard = vec![0; frame.len()];
                hears.read_exact(&mut heard).await.unwrap();
                assert_eq!(heard, frame);
                if engine_ends { engine.shutdown().await } else { client.shutdown().await }
                    .unwrap();
            };
            let (over, ()) = tokio::join!(carried, talk);
            assert_eq!(over, Ok(()), "{engine_says} {engine_ends}");
            assert_eq!(count, if engine_says { plain.len() } else { 0 });
        }
    }
}
