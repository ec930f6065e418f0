//! The load: raw HTTP/1.1 over kept connections, prepared requests, answers read only as far as needed to know their end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::engine::now_ns;

/// A request with a JSON body.
pub fn post(body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost:8711\r\nuser-agent: bench\r\naccept: */*\r\n\
         authorization: Bearer none\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A small chat.
pub fn small() -> Vec<u8> {
    post(
        r#"{"model":"m","messages":[{"role":"user","content":"Hello! Who are you?"}],"max_tokens":64,"temperature":0.7}"#,
    )
}

/// A stream of `tokens` events, `gap_us` apart; `hold`: it does not end.
pub fn stream(tokens: u64, gap_us: u64, hold: bool) -> Vec<u8> {
    let hold = if hold { ",\"hold\":1" } else { "" };
    post(&format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"Hello! Who are you?"}}],"stream":true,"metadata":{{"tokens":{tokens},"gap_us":{gap_us}{hold}}}}}"#
    ))
}

/// A body of `size` bytes, most of it one image, with `model` as the first or the last key.
pub fn image(size: usize, model_first: bool) -> Vec<u8> {
    let data =
        "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5ejAxMjM0NTY3ODk=";
    let data = data.trim_end_matches('=').repeat(size / 62);
    let messages = format!(
        r#""messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}]"#
    );
    post(&if model_first {
        format!(r#"{{"model":"m",{messages}}}"#)
    } else {
        format!(r#"{{{messages},"model":"m"}}"#)
    })
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(2048) })
    }

    /// Sends and reads one answer whose length is stated.
    async fn whole(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = self.head().await?;
        let text = std::str::from_utf8(&self.buffer[..head])?.to_ascii_lowercase();
        let length = text.split_once("content-length: ").context("no length")?.1;
        let length: usize = length.split_once("\r\n").context("no line end")?.0.trim().parse()?;
        while self.buffer.len() < head + length {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "cut off");
        }
        Ok(())
    }

    async fn head(&mut self) -> Result<usize> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                if !self.buffer.starts_with(b"HTTP/1.1 200") {
                    bail!("{}", String::from_utf8_lossy(&self.buffer));
                }
                return Ok(at + 4);
            }
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "cut off");
        }
    }
}

/// What a client saw of a stream.
#[derive(Default)]
pub struct Seen {
    /// From the request to the first event's first byte, nanoseconds.
    pub first: Vec<u64>,
    /// From each event's writing to its arrival, nanoseconds.
    pub delay: Vec<u64>,
}

/// `clients` clients send `each` requests, one after the other; latencies in nanoseconds.
pub async fn requests(
    address: SocketAddr,
    request: &[u8],
    clients: usize,
    each: usize,
) -> Result<Vec<u64>> {
    let mut tasks = JoinSet::new();
    let request: std::sync::Arc<[u8]> = request.into();
    for _ in 0..clients {
        let mut client = Client::open(address).await?;
        let request = request.clone();
        tasks.spawn(async move {
            let mut took = Vec::with_capacity(each);
            for _ in 0..each {
                let begun = now_ns();
                client.whole(&request).await?;
                took.push(now_ns() - begun);
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = tasks.join_next().await {
        all.extend(took??);
    }
    Ok(all)
}

/// `clients` clients read one stream each.
pub async fn streams(address: SocketAddr, request: &[u8], clients: usize) -> Result<Seen> {
    let mut tasks = JoinSet::new();
    let request: std::sync::Arc<[u8]> = request.into();
    for _ in 0..clients {
        let request = request.clone();
        tasks.spawn(async move { read(Client::open(address).await?, &request).await });
    }
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen??;
        all.first.extend(seen.first);
        all.delay.extend(seen.delay);
    }
    Ok(all)
}

async fn read(mut client: Client, request: &[u8]) -> Result<Seen> {
    let mut seen = Seen::default();
    let begun = now_ns();
    client.stream.write_all(request).await?;
    let head = client.head().await?;
    client.buffer.drain(..head);
    let mut text = Vec::new();
    loop {
        let now = now_ns();
        if seen.first.is_empty() && !client.buffer.is_empty() {
            seen.first.push(now - begun);
        }
        let over = dechunk(&mut client.buffer, &mut text)?;
        while let Some(end) = text.windows(2).position(|w| w == b"\n\n") {
            let event = std::str::from_utf8(&text[..end])?;
            if let Some((_, rest)) = event.split_once("\"t\":") {
                seen.delay.push(now.saturating_sub(rest.trim_end_matches('}').parse()?));
            }
            text.drain(..end + 2);
        }
        if over {
            return Ok(seen);
        }
        ensure!(client.stream.read_buf(&mut client.buffer).await? > 0, "the stream broke off");
    }
}

/// Moves whole chunks' data from `raw` to `text`; `true`: that was the last one.
fn dechunk(raw: &mut Vec<u8>, text: &mut Vec<u8>) -> Result<bool> {
    let mut used = 0;
    let over = loop {
        let rest = &raw[used..];
        let Some(line) = rest.windows(2).position(|w| w == b"\r\n") else { break false };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        let end = line + 2 + size + 2;
        if rest.len() < end {
            break false;
        }
        text.extend_from_slice(&rest[line + 2..end - 2]);
        used += end;
        if size == 0 {
            break true;
        }
    };
    raw.drain(..used);
    Ok(over)
}

/// Streams that are held open after their first event.
pub struct Held(Vec<Client>);

/// Opens `count` streams, `64` at a time, and waits for each one's first event.
pub async fn hold(address: SocketAddr, count: usize) -> Result<Held> {
    let request: std::sync::Arc<[u8]> = stream(1, 0, true).into();
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let mut tasks = JoinSet::new();
        for _ in 0..64.min(count - held.len()) {
            let request = request.clone();
            tasks.spawn(async move {
                let mut client = Client::open(address).await?;
                client.stream.write_all(&request).await?;
                let head = client.head().await?;
                client.buffer.drain(..head);
                while !client.buffer.windows(2).any(|w| w == b"\n\n") {
                    ensure!(client.stream.read_buf(&mut client.buffer).await? > 0, "broken off");
                }
                client.buffer = Vec::new();
                Ok(client)
            });
        }
        while let Some(client) = tasks.join_next().await {
            held.push(client??);
        }
    }
    Ok(Held(held))
}

impl Held {
    /// How many were ended by the other side.
    pub fn dropped(&self) -> usize {
        let blocked = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
        let alive =
            |c: &&Client| c.stream.try_read(&mut [0; 1]).err().as_ref().is_some_and(blocked);
        self.0.len() - self.0.iter().filter(alive).count()
    }
}

/// Waits until something listens at an address.
pub async fn listens(address: SocketAddr) -> bool {
    let attempt = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address));
    matches!(attempt.await, Ok(Ok(_)))
}

/// The middle value.
pub fn median<T: Copy + PartialOrd>(values: &mut [T]) -> Option<T> {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied()
}

/// A moment of rest, so that what was closed is closed on the other side too.
pub async fn settle() {
    tokio::time::sleep_until((Instant::now() + Duration::from_millis(300)).into()).await;
}
