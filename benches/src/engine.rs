//! The stand-in engine: answers as fast as it can, or streams at the pace that the request asks for.
//!
//! Purpose: be cheap and exact, so that what is measured is the proxy. Owner: the runner. The request's body tells what to do:
//! `"tokens":N` streams N events, `"gap_us":N` waits between them, `"hold":1` never ends the stream. Every event carries the
//! monotonic time at which it was written.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

/// Bodies above this are only counted.
const LOOK_MAX: usize = 64 << 10;
const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello! How can I help you today?"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}"#;
const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/// Nanoseconds of the monotonic clock, which all processes of a machine share.
pub fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(t.tv_sec) * 1_000_000_000 + part(t.tv_nsec)
}

/// Serves until it is killed.
pub fn run(listen: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if listen.starts_with('/') {
            let listener = UnixListener::bind(listen)?;
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(serve(stream));
            }
        }
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(stream));
        }
    })
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut buffer = Vec::with_capacity(4096);
    // Kept small: thousands of these are held at once.
    while let Some(order) = request(&mut stream, &mut buffer).await {
        if answer(&mut stream, &order).await.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Order {
    tokens: Option<u64>,
    gap: Duration,
    hold: bool,
}

async fn request<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Option<Order> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let length: usize = match value(&head, "content-length: ") {
        Some(length) => usize::try_from(length).ok()?,
        None => {
            chunks(stream, buffer, end).await?;
            return Some(Order::default());
        }
    };
    if length > LOOK_MAX {
        let mut left = length.checked_sub(buffer.len() - end)?;
        buffer.clear();
        let mut scratch = vec![0; 256 << 10];
        while left > 0 {
            let n = stream.read(&mut scratch).await.ok()?;
            left = left.checked_sub(n).filter(|_| n > 0)?;
        }
        return Some(Order::default());
    }
    while buffer.len() < end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8_lossy(&buffer[end..end + length]);
    let order = Order {
        tokens: value(&body, "\"tokens\":"),
        gap: Duration::from_micros(value(&body, "\"gap_us\":").unwrap_or(0)),
        hold: value(&body, "\"hold\":").is_some(),
    };
    buffer.drain(..end + length);
    Some(order)
}

/// A body in chunks, to its end; it is the last thing that is read.
async fn chunks<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
    end: usize,
) -> Option<()> {
    let mut tail = buffer.split_off(end);
    let mut scratch = vec![0; 256 << 10];
    while !tail.ends_with(b"\r\n0\r\n\r\n") {
        let n = stream.read(&mut scratch).await.ok().filter(|n| *n > 0)?;
        tail.extend_from_slice(&scratch[..n]);
        let keep = tail.len().saturating_sub(16);
        tail.drain(..keep);
    }
    buffer.clear();
    Some(())
}

fn value(text: &str, key: &str) -> Option<u64> {
    let rest = text.split_once(key)?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn event() -> String {
    let data = format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word\"}},\"finish_reason\":null}}],\"t\":{}}}\n\n",
        now_ns()
    );
    format!("{:x}\r\n{data}\r\n", data.len())
}

async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, order: &Order) -> std::io::Result<()> {
    let Some(tokens) = order.tokens else {
        let length = ANSWER.len();
        let all = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{ANSWER}"
        );
        return stream.write_all(all.as_bytes()).await;
    };
    // A clock that goes on while we write, as an engine's does.
    let mut next = tokio::time::Instant::now();
    let mut out = SSE.to_owned();
    for _ in 0..tokens {
        if !order.gap.is_zero() {
            next += order.gap;
            tokio::time::sleep_until(next).await;
        }
        out.push_str(&event());
        stream.write_all(out.as_bytes()).await?;
        out.clear();
    }
    if order.hold {
        drop(out);
        std::future::pending::<()>().await;
    }
    stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await
}
