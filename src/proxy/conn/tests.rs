//! One connection's stages, and what is done in one look.

use super::*;
use crate::proxy::budget::Budget;
use crate::proxy::intake::{Intake, Taken};

/// Of a connection that is not there.
pub fn busy() -> Busy {
    pulse().busy()
}

fn pulse() -> Arc<Pulse> {
    Pulse::new(Arc::default())
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn each_stage_has_its_deadline() {
    let limits = Limits::default();
    let pulse = pulse();
    let start = Instant::now();
    assert_eq!(pulse.check(start, &limits), Ok(start + limits.header_timeout));
    assert!(pulse.check(start + limits.header_timeout, &limits).is_err());
    let busy = pulse.busy();
    assert!(pulse.check(start + 3600 * SECOND, &limits).is_ok());
    drop(busy);
    assert!(pulse.check(start + limits.header_timeout, &limits).is_ok());
    assert!(pulse.check(start + limits.idle_timeout, &limits).is_err());
    pulse.heard();
    assert!(pulse.check(start + limits.header_timeout, &limits).is_err());
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_body_do_not_start_a_head() {
    let pulse = pulse();
    let _busy = pulse.busy();
    pulse.heard();
    assert_eq!(pulse.state().stage, Stage::Busy);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut() {
    let limits = Limits::default();
    let pulse = pulse();
    let start = Instant::now();
    let _busy = pulse.busy();
    pulse.wrote(true);
    tokio::time::advance(SECOND).await;
    pulse.wrote(true);
    assert!(pulse.check(start + limits.stall_timeout, &limits).is_err());
    pulse.wrote(false);
    assert!(pulse.check(start + limits.stall_timeout, &limits).is_ok());
}

/// The end of an answer that was handed on, and is still here because its client sleeps.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_taken_slowly_has_the_same_time_to_its_end() {
    let limits = Limits::default();
    let pulse = pulse();
    let busy = pulse.busy();
    pulse.wrote(true);
    drop(busy);
    tokio::time::advance(limits.stall_timeout - SECOND).await;
    assert!(pulse.check(Instant::now(), &limits).is_ok(), "it is no idle connection");
    assert_eq!(pulse.waits_since(Instant::now()), None);
    pulse.wrote(false);
    // It idles from then on.
    tokio::time::advance(limits.idle_timeout - SECOND).await;
    assert!(pulse.check(Instant::now(), &limits).is_ok());
    tokio::time::advance(SECOND).await;
    assert_eq!(pulse.check(Instant::now(), &limits), Err("idle"));
    pulse.wrote(true);
    tokio::time::advance(limits.stall_timeout).await;
    assert!(pulse.check(Instant::now(), &limits).is_err());
}

/// A request that came at the same moment is not lost by it.
#[tokio::test]
async fn who_is_asked_to_leave_does_so_between_two_requests() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut client, door) = tokio::net::UnixStream::pair().unwrap();
    let answer = |_: Request<Incoming>, busy: Busy| {
        Box::pin(async move {
            drop(busy);
            Response::new(http_body_util::Empty::<bytes::Bytes>::new())
        })
    };
    let pulse = pulse();
    let served = run(Stream::Unix(door), pulse.clone(), Arc::default(), End::default(), answer);
    let served = tokio::spawn(served);
    let mut came = [0; 256];
    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // There is one thread: the task has no turn between the two.
        pulse.ask_to_leave();
        let count = client.read(&mut came).await.unwrap();
        assert!(came[..count].starts_with(b"HTTP/1.1 200 "), "{:?}", &came[..count]);
    }
    // Who waits for its room asks again; for a second its next request may be on its way.
    let since = Instant::now();
    let asked = async {
        for _ in 0..100 {
            pulse.ask_to_leave();
            tokio::time::sleep(SECOND / 10).await;
        }
    };
    let left = tokio::select! {
        left = client.read(&mut came) => left.unwrap(),
        () = asked => panic!("it stays"),
    };
    assert_eq!(left, 0, "it was idle");
    assert!(since.elapsed() > SECOND / 2, "{:?}", since.elapsed());
    served.await.unwrap();
}

/// Nobody else has a timer there: a deadline within an answer is the connection's to look at, in time and not before.
#[tokio::test(start_paused = true)]
async fn what_an_answer_waits_for_ends_in_time() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let limits = Limits::default();
    for patience in [Duration::from_millis(30), 4 * SECOND, 2 * limits.header_timeout] {
        let (mut client, door) = tokio::net::UnixStream::pair().unwrap();
        let answer = move |_: Request<Incoming>, busy: Busy| {
            Box::pin(async move {
                let came = clock::within(patience, std::future::pending::<()>()).await;
                drop(busy);
                let status = if came.is_none() { 504 } else { 200 };
                let body = http_body_util::Empty::<bytes::Bytes>::new();
                Response::builder().status(status).body(body).unwrap()
            })
        };
        let served =
            run(Stream::Unix(door), pulse(), Arc::new(limits.clone()), End::default(), answer);
        let served = tokio::spawn(served);
        let since = Instant::now();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 64];
        let count = client.read(&mut answer).await.unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 504 "), "{:?}", &answer[..count]);
        let took = since.elapsed();
        assert!(took >= patience && took < patience + SECOND / 20, "{took:?} of {patience:?}");
        drop(client);
        served.await.unwrap();
    }
}

/// How often a request was looked at in the turn in which its body had come in whole.
async fn looks(request: &str) -> usize {
    use std::sync::atomic::AtomicUsize;
    use tokio::io::AsyncWriteExt;
    let (mut client, door) = tokio::net::UnixStream::pair().unwrap();
    let (looks, whole) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (count, came) = (looks.clone(), whole.clone());
    let answer = move |request: Request<Incoming>, busy: Busy| {
        let (count, came) = (count.clone(), came.clone());
        let work = async move {
            let share = Arc::<Budget>::default().share(1 << 20);
            let limits = Arc::new(Limits::default());
            let mut intake =
                Intake::open(request.into_body(), &limits, false, false, share).await.unwrap();
            assert_eq!(intake.take(false).await.unwrap(), Taken::Whole);
            assert_eq!(intake.held(), b"12345");
            came.notify_one();
            std::future::pending::<()>().await;
            drop(busy);
            Response::new(http_body_util::Empty::<bytes::Bytes>::new())
        };
        let mut work = Box::pin(work);
        Box::pin(std::future::poll_fn(move |cx| {
            count.fetch_add(1, Ordering::SeqCst);
            work.as_mut().poll(cx)
        }))
    };
    let served = run(Stream::Unix(door), pulse(), Arc::default(), End::default(), answer);
    let served = tokio::spawn(served);
    client.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\n{request}").as_bytes()).await.unwrap();
    // The turn is over when we have ours.
    whole.notified().await;
    served.abort();
    looks.load(Ordering::SeqCst)
}

#[tokio::test]
async fn who_has_a_whole_body_is_not_looked_at_again_for_it() {
    assert_eq!(looks("content-length: 5\r\n\r\n12345").await, 1);
    // Where the end is not known in advance, there is more to fetch behind each piece.
    let chunks = "transfer-encoding: chunked\r\n\r\n3\r\n123\r\n2\r\n45\r\n0\r\n\r\n";
    assert!(looks(chunks).await > 1);
}
