//! A generation, and the stream of events that carries it.
//!
//! The pace is absolute: token *n* is due at begin + TTFT + *n* / RATE (± JITTER), so a late timer
//! does not add up. A generation obeys [`Control`](crate::state::Control) between tokens.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::chaos::{self, Chaos};
use crate::knobs::{Flavor, Knobs};
use crate::server::Wire;
use crate::state::{Control, FLUSH, Flight, add};
use crate::text::{Finish, Script, mix};

/// The connection is to break here.
#[derive(Debug, thiserror::Error)]
#[error("the connection breaks here on purpose")]
pub struct Broken;

/// Every answer's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, Broken>;

/// What a generation did next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Piece(String),
    Finish(Finish),
    /// The engine ends under it.
    EngineEnds,
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Generation {
    pub flight: Flight,
    pub knobs: Arc<Knobs>,
    pub prompt_tokens: usize,
    script: Script,
    begun: Instant,
    control: watch::Receiver<Control>,
}

impl Generation {
    pub(crate) fn new(flight: Flight, script: Script, prompt_tokens: usize) -> Self {
        let engine = &flight.engine;
        add(&engine.counters.prompt_tokens, prompt_tokens as u64);
        let control = engine.control.subscribe();
        let knobs = engine.knobs();
        Self { knobs, script, prompt_tokens, begun: Instant::now(), control, flight }
    }

    /// The next token, when it is due.
    pub(crate) async fn step(&mut self) -> Step {
        self.flight.engine.between_tokens(self.flight.tokens).await;
        loop {
            let halted = {
                let control = self.control.borrow_and_update();
                if control.ending() {
                    return Step::EngineEnds;
                }
                if control.epoch != self.flight.epoch {
                    return Step::Finish(Finish::Abort);
                }
                control.halted()
            };
            let sent = self.flight.tokens;
            let piece = usize::try_from(sent).ok().and_then(|at| self.script.pieces.get(at));
            if halted {
                let since = Instant::now();
                // Fails only when the engine is gone, and then this is, too.
                let _changed = self.control.changed().await;
                self.begun += since.elapsed();
                continue;
            }
            let Some(piece) = piece.cloned() else { return Step::Finish(self.script.finish) };
            let due = self.begun + self.knobs.ttft + pace(&self.knobs, self.flight.number, sent);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                _ = self.control.changed() => continue,
            }
            self.flight.tokens += 1;
            add(&self.flight.engine.counters.tokens, 1);
            return Step::Piece(piece);
        }
    }

    /// Exact counts.
    pub(crate) fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.flight.tokens,
            "total_tokens": self.prompt_tokens as u64 + self.flight.tokens,
        })
    }

    /// llama.cpp's account of a generation.
    pub(crate) fn timings(&self) -> Value {
        let elapsed = self.begun.elapsed().as_secs_f64() * 1000.0;
        json!({
            "prompt_n": self.prompt_tokens,
            "prompt_ms": self.knobs.ttft.as_secs_f64() * 1000.0,
            "predicted_n": self.flight.tokens,
            "predicted_ms": elapsed,
            "predicted_per_second": self.knobs.rate,
        })
    }
}

fn pace(knobs: &Knobs, number: u64, token: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "token numbers are small")]
    let at = |n: u64| n as f64;
    let jitter = if knobs.jitter == 0 || token == 0 {
        0.0
    } else {
        // Thousandths of a token's time, -0.5 to 0.5.
        at(mix(knobs.jitter ^ mix(number) ^ token) % 1000) / 1000.0 - 0.5
    };
    Duration::from_secs_f64(((at(token) + jitter) / knobs.rate).max(0.0))
}

/// How an answer looks on the wire: what differs between the routes.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    pub chat: bool,
    pub id: String,
    pub model: String,
    pub created: u64,
    pub include_usage: bool,
}

impl Form {
    pub(crate) fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, delta: Value, finish: Option<Finish>) -> Value {
        let finish = finish.map(Finish::as_str);
        if self.chat {
            let choice =
                json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
            self.envelope("chat.completion.chunk", json!([choice]))
        } else {
            let text = delta.get("content").cloned().unwrap_or_else(|| json!(""));
            let choice =
                json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish});
            self.envelope("text_completion", json!([choice]))
        }
    }
}

/// The engine's error object.
pub(crate) fn error(flavor: Flavor, code: u16, kind: &str, message: &str) -> Value {
    match flavor {
        Flavor::Vllm => {
            json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
        }
        Flavor::LlamaCpp => json!({"error": {"code": code, "message": message, "type": kind}}),
    }
}

pub(crate) const CORE_DEAD: &str =
    "EngineCore encountered an issue. See stack trace (above) for the root cause.";

fn event(value: &Value) -> Vec<u8> {
    format!("data: {value}\n\n").into_bytes()
}

const DONE: &[u8] = b"data: [DONE]\n\n";

/// What the stream does next.
enum Next {
    Role,
    Tokens,
    Usage,
    Done,
    Break,
    End,
}

struct Events {
    generation: Generation,
    form: Form,
    wire: Arc<Wire>,
    next: Next,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

/// The body of a streamed answer.
pub(crate) fn body(generation: Generation, form: Form, wire: Arc<Wire>) -> Body {
    let gzip = chaos::has(&generation.knobs.chaos, Chaos::Gzip)
        .then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let next = if form.chat { Next::Role } else { Next::Tokens };
    let events = Events { generation, form, wire, next, gzip };
    let frames = stream::unfold(events, |mut events| async move {
        let bytes = events.advance().await?;
        let frame = bytes.and_then(|bytes| events.packed(bytes)).map(Frame::data);
        if frame.is_err() {
            events.next = Next::End;
        }
        Some((frame, events))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A body that breaks its connection after `start`.
pub(crate) fn broken(wire: &Wire, start: &'static [u8]) -> Body {
    wire.reset_on_close();
    let frames = stream::unfold(0, move |sent| async move {
        match sent {
            0 => Some((Ok(Frame::data(Bytes::from_static(start))), 1)),
            1 => {
                tokio::time::sleep(FLUSH).await;
                Some((Err(Broken), 2))
            }
            _ => None,
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Events {
    fn packed(&mut self, bytes: Vec<u8>) -> Result<Bytes, Broken> {
        let Some(gzip) = &mut self.gzip else { return Ok(bytes.into()) };
        gzip.write_all(&bytes).and_then(|()| gzip.flush()).map_err(|_| Broken)?;
        let mut packed = std::mem::take(gzip.get_mut());
        if matches!(self.next, Next::End)
            && let Some(gzip) = self.gzip.take()
        {
            // `finish` returns what remains of the writer: the trailer.
            packed.extend(gzip.finish().map_err(|_| Broken)?);
        }
        Ok(packed.into())
    }

    /// The answer is complete: what the client does from here on is no abort.
    fn complete(&mut self) {
        self.generation.flight.finish();
        let unannounced = self.generation.knobs.flavor == Flavor::LlamaCpp
            || chaos::has(&self.generation.knobs.chaos, Chaos::CloseAfterStream);
        if unannounced {
            self.wire.close.notify_one();
        }
        self.next = Next::End;
    }

    async fn broken(&mut self) -> Result<Vec<u8>, Broken> {
        tokio::time::sleep(FLUSH).await;
        self.generation.flight.finish();
        self.wire.reset_on_close();
        Err(Broken)
    }

    async fn advance(&mut self) -> Option<Result<Vec<u8>, Broken>> {
        let flavor = self.generation.knobs.flavor;
        Some(match std::mem::replace(&mut self.next, Next::Tokens) {
            Next::Role => {
                let content = if flavor == Flavor::Vllm { json!("") } else { Value::Null };
                let delta = json!({"role": "assistant", "content": content});
                Ok(event(&self.form.chunk(delta, None)))
            }
            Next::Tokens => self.token().await,
            Next::Usage => {
                let object =
                    if self.form.chat { "chat.completion.chunk" } else { "text_completion" };
                let mut chunk = self.form.envelope(object, json!([]));
                chunk["usage"] = self.generation.usage();
                self.next = Next::Done;
                Ok(event(&chunk))
            }
            Next::Done => {
                self.complete();
                if chaos::has(&self.generation.knobs.chaos, Chaos::NoDone) {
                    return None;
                }
                Ok(DONE.to_vec())
            }
            Next::Break => self.broken().await,
            Next::End => return None,
        })
    }

    async fn token(&mut self) -> Result<Vec<u8>, Broken> {
        let fault = chaos::at_token(&self.generation.knobs.chaos, self.generation.flight.tokens);
        match fault {
            Some(Chaos::Drop(_)) => return self.broken().await,
            Some(Chaos::Stall(_)) => std::future::pending().await,
            Some(Chaos::ErrorEvent(_)) => return Ok(self.engine_error()),
            _ => {}
        }
        match self.generation.step().await {
            Step::Piece(piece) => {
                let mut chunk = self.form.chunk(json!({"content": piece}), None);
                if self.generation.flight.tokens == 1
                    && let Some(Chaos::BigEvent(bytes)) = self
                        .generation
                        .knobs
                        .chaos
                        .iter()
                        .find(|fault| matches!(fault, Chaos::BigEvent(_)))
                {
                    chunk["padding"] = json!("x".repeat(*bytes));
                }
                let mut line = event(&chunk);
                if matches!(fault, Some(Chaos::HalfEvent(_))) {
                    line.truncate(line.len() / 2);
                    self.next = Next::Break;
                }
                Ok(line)
            }
            Step::Finish(finish) => Ok(self.last(finish)),
            Step::EngineEnds if self.generation.knobs.flavor == Flavor::Vllm => {
                Ok(self.engine_error())
            }
            // llama-server simply goes.
            Step::EngineEnds => self.broken().await,
        }
    }

    fn last(&mut self, finish: Finish) -> Vec<u8> {
        let llama = self.generation.knobs.flavor == Flavor::LlamaCpp;
        let delta = if llama { json!({}) } else { json!({"content": ""}) };
        let mut chunk = self.form.chunk(delta, Some(finish));
        if llama {
            chunk["timings"] = self.generation.timings();
        }
        self.next = if self.form.include_usage { Next::Usage } else { Next::Done };
        event(&chunk)
    }

    fn engine_error(&mut self) -> Vec<u8> {
        let flavor = self.generation.knobs.flavor;
        let mut bytes = event(&error(flavor, 500, "InternalServerError", CORE_DEAD));
        if flavor == Flavor::Vllm && !chaos::has(&self.generation.knobs.chaos, Chaos::NoDone) {
            bytes.extend_from_slice(DONE);
        }
        self.complete();
        bytes
    }
}
