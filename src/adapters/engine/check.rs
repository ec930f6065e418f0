//! Whether an engine that was ready still is.
//!
//! Purpose: two questions: `/health`, and one that only the engine's own loop answers, which hangs in some that say they are
//! well. Owner: the executor asks through the port. Invariants: never longer than it is told; a route that an engine has not
//! (an embedding model completes nothing) is no fault of it.
//!
//! llama-server's `/metrics` was answered by its loop until August 2026, between two batches, so that one that hangs is silent. Since then
//! another thread answers while the loop computes: one that hangs says that it works, where nobody has asked it for anything.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use super::probe::{self, Health};
use super::{dev, metrics};
use crate::supervisor::ports::{Endpoint, Ill};
use crate::types::{EngineKind, ModelSpec};

/// What is wrong with a llama-server whose loop hangs.
const STUCK: &str =
    "/metrics says that it works, on nothing that anybody waits for, and it does not get on";
/// Until an engine whose queue of connections is full is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Asks.
///
/// # Errors
/// In what it is not well, for people.
pub(super) async fn check(
    spec: &ModelSpec,
    endpoint: &Endpoint,
    deep: bool,
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
        if !deep {
            return Ok(());
        }
        let (method, path, body) = match spec.engine {
            // A completion would take a slot, and with it the prompt that a conversation has there: minutes of work, each time.
            EngineKind::Llamacpp => (Method::GET, "/metrics", None),
            // Its API server is another process than its core, and its cache is made of blocks.
            EngineKind::Vllm => {
                let body = json!({"model": spec.name, "prompt": "1", "max_tokens": 1, "temperature": 0, "stream": false});
                (Method::POST, "/v1/completions", Some(body))
            }
        };
        // Its own limit is never the first: the one around all of this tells silence apart.
        let limits = (2 * timeout, metrics::BODY_MAX);
        let asks = || dev::converse(endpoint, method.clone(), path, body.clone(), limits);
        let (status, page) = asks().await.map_err(Ill::says)?;
        match (status, at_work(&page)) {
            (500 | 502 | 504, _) => Err(Ill::says(format!("{path} failed with status {status}"))),
            (200, Some(before)) if spec.engine == EngineKind::Llamacpp => {
                // An old one does not notice at once that its client has gone, and goes on.
                tokio::time::sleep(timeout / 2).await;
                let (_, page) = asks().await.map_err(Ill::says)?;
                match at_work(&page) {
                    Some(now) if now == before => Err(Ill::says(STUCK)),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    };
    let late = |_| Err(Ill::silent(format!("no answer within {timeout:?}")));
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(late)
}

/// How many batches a llama-server has computed, if its page says that it works on a request.
fn at_work(page: &[u8]) -> Option<String> {
    let page = std::str::from_utf8(page).ok()?;
    let value = |name: &str| {
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse::<f64>().ok()
    };
    let batches = value("llamacpp:n_decode_total")?;
    (value("llamacpp:requests_processing")? > 0.0).then(|| batches.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::supervisor::ports::reach::tests::full;
    use crate::types::test_spec;

    /// Longer than a loading engine is given.
    const PATIENCE: Duration = Duration::from_millis(1200);

    /// An engine that answers `/health` and all else so; an empty answer is none at all.
    async fn ask(
        kind: EngineKind,
        health: &'static str,
        other: &'static str,
        deep: bool,
    ) -> Result<(), Ill> {
        ask_again(kind, health, vec![other.to_owned()], deep).await
    }

    /// The same of one that answers all else by turns.
    async fn ask_again(
        kind: EngineKind,
        health: &'static str,
        others: Vec<String>,
        deep: bool,
    ) -> Result<(), Ill> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = tokio::spawn(async move {
            let mut open = Vec::new();
            let mut others = others.iter().cycle();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 2048];
                let n = stream.read(&mut head).await.unwrap();
                let asked_for = |line: &str| head[..n].starts_with(line.as_bytes());
                let its_own = match kind {
                    EngineKind::Llamacpp => "GET /metrics ",
                    EngineKind::Vllm => "POST /v1/completions ",
                };
                let answer = if asked_for("GET /health ") {
                    health
                } else if asked_for(its_own) {
                    others.next().unwrap()
                } else {
                    "599 What is not for this engine\r\ncontent-length: 0\r\n\r\n"
                };
                if !answer.is_empty() {
                    let text = format!("HTTP/1.1 {answer}");
                    stream.write_all(text.as_bytes()).await.unwrap();
                }
                open.push(stream);
            }
        });
        let endpoint = Endpoint::Unix(path);
        let mut spec = test_spec("m");
        spec.engine = kind;
        let result = check(&spec, &endpoint, deep, PATIENCE).await;
        serve.abort();
        result
    }

    const OK: &str = "200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}";
    const LOADING: &str = "503 X\r\ncontent-length: 0\r\n\r\n";
    const BROKEN: &str = "500 X\r\ncontent-length: 0\r\n\r\n";
    const NO_ROUTE: &str = "501 X\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn an_engine_whose_loop_does_not_answer_is_not_well() {
        let said = |why: &str, ill: Ill| assert!(ill.why.contains(why) && !ill.silent, "{ill:?}");
        for (kind, path) in
            [(EngineKind::Vllm, "/v1/completions"), (EngineKind::Llamacpp, "/metrics")]
        {
            assert_eq!(ask(kind, OK, OK, true).await, Ok(()));
            assert_eq!(ask(kind, OK, NO_ROUTE, true).await, Ok(()), "it has no such route");
            assert_eq!(ask(kind, OK, BROKEN, false).await, Ok(()), "it was not asked");
            said(path, ask(kind, OK, BROKEN, true).await.unwrap_err());
            said("/health", ask(kind, LOADING, OK, true).await.unwrap_err());
            said("/health", ask(kind, BROKEN, OK, true).await.unwrap_err());
        }
    }

    /// It answers by another thread than the one that hangs.
    #[tokio::test]
    async fn a_llama_server_that_works_on_nothing_and_does_not_get_on_hangs() {
        let page = |processing: u32, batches: Option<u32>| {
            let batches = batches.map(|n| format!("llamacpp:n_decode_total {n}\n"));
            let text = format!(
                "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {processing}\n{}",
                batches.unwrap_or_default()
            );
            format!("200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())
        };
        let asked = async |pages: &[(u32, Option<u32>)]| {
            let pages = pages.iter().map(|(n, batches)| page(*n, *batches)).collect();
            ask_again(EngineKind::Llamacpp, OK, pages, true).await
        };
        let ill = asked(&[(1, Some(7))]).await.unwrap_err();
        assert!(ill.why.contains("does not get on") && !ill.silent, "{ill:?}");
        for well in [
            &[(0, Some(7))][..],
            &[(1, Some(7)), (1, Some(8))],
            &[(1, Some(7)), (0, Some(7))],
            // One that does not count its batches answers by its loop.
            &[(1, None)],
        ] {
            assert_eq!(asked(well).await, Ok(()), "{well:?}");
        }
    }

    #[tokio::test]
    async fn one_that_takes_no_connection_for_a_while_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let (listener, queued) = full(&path).await;
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
        for (kind, health, other) in
            [(EngineKind::Vllm, OK, ""), (EngineKind::Llamacpp, OK, ""), (EngineKind::Vllm, "", OK)]
        {
            let began = std::time::Instant::now();
            let ill = ask(kind, health, other, true).await.unwrap_err();
            assert!(ill.silent && ill.why.contains("no answer within 1.2s"), "{ill:?}");
            assert!(began.elapsed() >= PATIENCE, "a probe's own deadline is for who loads");
        }
    }
}
