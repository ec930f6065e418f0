//! An engine's own metrics.
//!
//! Purpose: one `GET /metrics`. Owner: the console asks through the port. Invariants: bounded in time and size; the text is passed on, not
//! understood.

use std::time::Duration;

use hyper::Method;

use super::dev;
use crate::supervisor::ports::Endpoint;

/// An engine that is busy answers late: vLLM from the process that also tokenizes.
const DEADLINE: Duration = Duration::from_secs(5);
/// vLLM's page is some 100 kB.
pub(super) const BODY_MAX: usize = 4 << 20;

/// Asks.
///
/// # Errors
/// What went wrong, for people.
pub(super) async fn metrics(endpoint: &Endpoint) -> Result<String, String> {
    let path = "/metrics";
    let (status, body) =
        dev::converse(endpoint, Method::GET, path, None, (DEADLINE, BODY_MAX)).await?;
    if status != 200 {
        return Err(format!("{path}: answered {status}"));
    }
    String::from_utf8(body.to_vec()).map_err(|_| format!("{path}: the answer is no text"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    async fn answered(answer: Vec<u8>) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            assert!(head[..n].starts_with(b"GET /metrics HTTP/1.1\r\n"));
            // The other side may have had enough.
            let _ = stream.write_all(&answer).await;
        });
        let result = metrics(&Endpoint::Unix(path)).await;
        serve.await.unwrap();
        result
    }

    #[tokio::test]
    async fn a_page_or_why_there_is_none() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nup 1\n";
        assert_eq!(answered(ok.to_vec()).await, Ok("up 1\n".to_owned()));
        let none = b"HTTP/1.1 501 No\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(answered(none.to_vec()).await, Err("/metrics: answered 501".to_owned()));
        let binary = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe";
        assert!(answered(binary.to_vec()).await.unwrap_err().contains("no text"));
        let mut flood = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
        flood.resize(flood.len() + BODY_MAX + 1, b'x');
        assert!(answered(flood).await.is_err());
        let nowhere = Endpoint::Unix("/nonexistent/e.sock".into());
        assert!(metrics(&nowhere).await.unwrap_err().contains("cannot connect"));
    }
}
