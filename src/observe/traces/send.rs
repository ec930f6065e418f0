//! Spans on their way to the collector.
//!
//! Purpose: OTLP over HTTP, in JSON: many spans in a request, each request on a connection of its own. Owner: the composition root runs
//! [`Exporter::run`] as one task. Invariants: nothing but this task waits for the collector; what it refuses, or does not take after a few
//! tries, is lost and counted; the beginning and the end of trouble are told, not each request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::span::{self, Span};
use crate::observe::metrics::Metrics;
use crate::types::{Collector, sandbox};

/// Spans in one request.
const TOGETHER: usize = 512;
/// So long a span may wait for others.
const GATHER: Duration = Duration::from_secs(1);
/// For one try.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before the tries behind the first, where it may help.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// What the end of the daemon waits for the collector.
const LAST: Duration = Duration::from_secs(2);
/// An answer is not read further.
const ANSWER_MAX: usize = 64 << 10;

/// Why spans were not taken.
#[derive(Debug)]
enum Refused {
    /// Another time they may be.
    Now(String),
    /// They never will be.
    Ever(String),
}

/// Sends spans.
#[derive(Debug)]
pub struct Exporter {
    collector: Collector,
    waiting: Receiver<Span>,
    metrics: Arc<Metrics>,
    /// Lost since it was last said that none is.
    lost: u64,
}

impl Exporter {
    pub(super) fn new(
        collector: Collector,
        waiting: Receiver<Span>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { collector, waiting, metrics, lost: 0 }
    }

    /// Sends what comes, until `stop` or the last who makes spans is gone; then what is left, if that is quick.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(TOGETHER);
        while let Some(()) = stop.run_until_cancelled(self.gather(&mut batch)).await {
            if batch.is_empty() {
                return;
            }
            if stop.run_until_cancelled(self.deliver(&batch)).await.is_none() {
                break;
            }
            batch.clear();
        }
        self.waiting.close();
        while batch.len() < TOGETHER
            && let Ok(span) = self.waiting.try_recv()
        {
            batch.push(span);
        }
        let left = batch.len() + self.waiting.len();
        if left > 0 {
            let sent = tokio::time::timeout(LAST, post(&self.collector, &batch)).await;
            let all = batch.len() as u64;
            let taken = if let Ok(Ok(refused)) = sent { all.saturating_sub(refused) } else { 0 };
            self.metrics.spans(taken, left as u64 - taken);
        }
    }

    /// Waits for spans and for company; none: there will be no more.
    async fn gather(&mut self, batch: &mut Vec<Span>) {
        if batch.is_empty() && self.waiting.recv_many(batch, TOGETHER).await == 0 {
            return;
        }
        let more = async {
            while batch.len() < TOGETHER {
                let room = TOGETHER - batch.len();
                if self.waiting.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        // An error: nobody else came.
        let _ = tokio::time::timeout(GATHER, more).await;
    }

    async fn deliver(&mut self, batch: &[Span]) {
        let mut pauses = PAUSES.iter();
        let outcome = loop {
            match post(&self.collector, batch).await {
                Err(Refused::Now(why)) => match pauses.next() {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None => break Err(why),
                },
                Err(Refused::Ever(why)) => break Err(why),
                Ok(refused) => break Ok(refused),
            }
        };
        let all = batch.len() as u64;
        let (lost, why) = match outcome {
            Ok(0) => (0, String::new()),
            Ok(refused) => (refused.min(all), "it took only a part".to_owned()),
            Err(why) => (all, why),
        };
        self.metrics.spans(all - lost, lost);
        self.tell(lost, &why);
    }

    fn tell(&mut self, lost: u64, why: &str) {
        if lost > 0 && self.lost == 0 {
            tracing::warn!(
                "spans are lost: {} ([traces] otlp) does not take them: {why}",
                self.collector
            );
        } else if lost == 0 && self.lost > 0 {
            let before = self.lost;
            tracing::info!("{} takes spans again; {before} were lost", self.collector);
            self.lost = 0;
        }
        self.lost += lost;
    }
}

/// Sends a request. Says how many of its spans were refused.
async fn post(collector: &Collector, spans: &[Span]) -> Result<u64, Refused> {
    let late = |_| Err(Refused::Now(format!("no answer within {} s", PATIENCE.as_secs())));
    tokio::time::timeout(PATIENCE, tried(collector, spans)).await.unwrap_or_else(late)
}

async fn tried(collector: &Collector, spans: &[Span]) -> Result<u64, Refused> {
    let unreached = |error| Refused::Now(sandbox::unconnected(&error));
    let body = Bytes::from(span::body(spans));
    match collector {
        Collector::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(unreached)?;
            ask(stream, "localhost", collector.path(), body).await
        }
        Collector::Http(origin) => {
            let address = (origin.host.as_str(), origin.port);
            let stream = TcpStream::connect(address).await.map_err(unreached)?;
            ask(stream, &origin.authority(), collector.path(), body).await
        }
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
    body: Bytes,
) -> Result<u64, Refused> {
    let broken = |error: hyper::Error| Refused::Now(format!("it gave no answer: {error}"));
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(broken)?;
    let request = Request::post(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| Refused::Ever(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let answer = answer.map(|all| all.to_bytes()).unwrap_or_default();
        judge(status, &answer)
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        // The connection's end: what came is told by the exchange.
        _ = connection => exchange.await,
    }
}

/// What the collector says of the spans that it was sent.
fn judge(status: StatusCode, answer: &[u8]) -> Result<u64, Refused> {
    if status.is_success() {
        let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
        let refused = &answer["partialSuccess"]["rejectedSpans"];
        let text = refused.as_str().and_then(|text| text.parse().ok());
        return Ok(refused.as_u64().or(text).unwrap_or(0));
    }
    let why = format!("it answers {status}");
    // Those that OTLP has as worth another try.
    Err(match status.as_u16() {
        429 | 502 | 503 | 504 => Refused::Now(why),
        _ => Refused::Ever(why),
    })
}
