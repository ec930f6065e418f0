//! Whether an engine that was ready still is.
//!
//! Purpose: two questions: `/health`, and for one token, which some engines cannot give any more though they say that they are
//! well. Owner: the executor asks through the port. Invariants: never longer than it is told; a route that an engine has not
//! (an embedding model completes nothing) is no fault of it.

use std::time::Duration;

use serde_json::json;

use super::{dev, probe};
use crate::supervisor::ports::Endpoint;
use crate::types::ModelSpec;

/// Asks.
///
/// # Errors
/// In what it is not well, for people.
pub(super) async fn check(
    spec: &ModelSpec,
    endpoint: &Endpoint,
    token: bool,
    timeout: Duration,
) -> Result<(), String> {
    let asked = async {
        if !probe::health(spec.engine, endpoint).await? {
            return Err("/health did not answer, or said that it is not ready".to_owned());
        }
        if !token {
            return Ok(());
        }
        let body = json!({"model": spec.name, "prompt": "1", "max_tokens": 1, "temperature": 0, "stream": false});
        match dev::status_of_post(endpoint, "/v1/completions", body, timeout).await? {
            500 | 502 | 504 => Err("/v1/completions failed on one token".to_owned()),
            _ => Ok(()),
        }
    };
    let late = |_| Err(format!("no answer within {timeout:?}"));
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::types::test_spec;

    /// An engine that answers each path so; an empty answer is none at all.
    async fn ask(
        health: &'static str,
        completion: &'static str,
        token: bool,
    ) -> Result<(), String> {
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
        let result = check(&test_spec("m"), &endpoint, token, Duration::from_millis(700)).await;
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
        assert!(ask(OK, BROKEN, true).await.unwrap_err().contains("/v1/completions"));
        assert!(ask(OK, "", true).await.unwrap_err().contains("no answer within"));
        assert!(ask(LOADING, OK, true).await.unwrap_err().contains("/health"));
        assert!(ask(BROKEN, OK, true).await.unwrap_err().contains("/health"));
    }
}
