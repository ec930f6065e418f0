//! Whether an engine that was ready still is.
//!
//! Purpose: two questions: `/health`, and for one token, which some engines cannot give any more though they say that they are
//! well. Owner: the executor asks through the port. Invariants: never longer than it is told; a route that an engine has not
//! (an embedding model completes nothing) is no fault of it.

use std::time::Duration;

use serde_json::json;

use super::dev;
use super::probe::{self, Health};
use crate::supervisor::ports::{Endpoint, Ill};
use crate::types::ModelSpec;

/// Until an engine whose queue of connections is full is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Asks.
///
/// # Errors
/// In what it is not well, for people.
pub(super) async fn check(
    spec: &ModelSpec,
    endpoint: &Endpoint,
    token: bool,
    timeout: Duration,
) -> Result<(), Ill> {
    let asked = async {
        loop {
            match probe::say(spec.engine, endpoint).await.map_err(Ill::says)? {
                Health::Ready => break,
                Health::NotYet => return Err(Ill::says("/health says no more that it is ready")),
                // Until it comes to it, or the time is over.
                Health::Busy => tokio::time::sleep(BUSY_PAUSE).await,
            }
        }
        if !token {
            return Ok(());
        }
        let body = json!({"model": spec.name, "prompt": "1", "max_tokens": 1, "temperature": 0, "stream": false});
        // Its own limit is never the first: the one around all of this tells silence apart.
        let status = dev::status_of_post(endpoint, "/v1/completions", body, 2 * timeout).await;
        match status.map_err(Ill::says)? {
            500 | 502 | 504 => Err(Ill::says("/v1/completions failed on one token")),
            _ => Ok(()),
        }
    };
    let late = |_| Err(Ill::silent(format!("no answer within {timeout:?}")));
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::types::test_spec;

    /// Longer than a loading engine is given.
    const PATIENCE: Duration = Duration::from_millis(1200);

    /// An engine that answers each path so; an empty answer is none at all.
    async fn ask(health: &'static str, completion: &'static str, token: bool) -> Result<(), Ill> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 2048];
                let n = stream.read(&mut head).await.unwrap();
                let answer =
                    if head[..n].starts_with(b"GET /health") { health } else { completion };
                if !answer.is_empty() {
                    let text = format!("HTTP/1.1 {answer}");
                    stream.write_all(text.as_bytes()).await.unwrap();
                }
                open.push(stream);
            }
        });
        let endpoint = Endpoint::Unix(path);
        let result = check(&test_spec("m"), &endpoint, token, PATIENCE).await;
        serve.abort();
        result
    }

    const OK: &str = "200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}";
    const LOADING: &str = "503 X\r\ncontent-length: 0\r\n\r\n";
    const BROKEN: &str = "500 X\r\ncontent-length: 0\r\n\r\n";
    const NO_ROUTE: &str = "501 X\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn an_engine_that_cannot_give_a_token_is_not_well() {
        assert_eq!(ask(OK, OK, true).await, Ok(()));
        assert_eq!(ask(OK, NO_ROUTE, true).await, Ok(()), "it completes nothing");
        assert_eq!(ask(OK, BROKEN, false).await, Ok(()), "it was not asked");
        let said = |why: &str, ill: Ill| assert!(ill.why.contains(why) && !ill.silent, "{ill:?}");
        said("/v1/completions", ask(OK, BROKEN, true).await.unwrap_err());
        said("/health", ask(LOADING, OK, true).await.unwrap_err());
        said("/health", ask(BROKEN, OK, true).await.unwrap_err());
    }

    #[tokio::test]
    async fn one_that_takes_no_connection_for_a_while_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
            queued.push(stream);
        }
        let (spec, endpoint) = (test_spec("m"), Endpoint::Unix(path));
        let asked = check(&spec, &endpoint, false, Duration::from_secs(60));
        tokio::pin!(asked);
        // It meets the full queue at once.
        let soon = tokio::time::timeout(Duration::from_millis(10), &mut asked).await;
        assert!(soon.is_err(), "{soon:?}");
        let serve = async {
            for _ in queued {
                listener.accept().await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 2048];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            stream.write_all(format!("HTTP/1.1 {OK}").as_bytes()).await.unwrap();
        };
        assert_eq!(tokio::join!(asked, serve).0, Ok(()));
    }

    #[tokio::test]
    async fn silence_is_told_apart_and_waited_for_as_long_as_it_may() {
        for (health, completion) in [(OK, ""), ("", OK)] {
            let began = std::time::Instant::now();
            let ill = ask(health, completion, true).await.unwrap_err();
            assert!(ill.silent && ill.why.contains("no answer within 1.2s"), "{ill:?}");
            assert!(began.elapsed() >= PATIENCE, "a probe's own deadline is for who loads");
        }
    }
}
