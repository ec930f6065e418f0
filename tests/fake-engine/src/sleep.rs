//! Sleep and wake, with vLLM's semantics.
//!
//! `/sleep?level=0|1|2&mode=abort|wait|keep`, `/wake_up[?tags=…]`, `/is_sleeping`, `/pause`, `/resume`,
//! `/is_paused`. Without `--enable-sleep-mode` the answers are the same and the memory stays, as in
//! the real engine: only the driver tells the truth. One change of sleep at a time; who sleeps already
//! sleeps no deeper. Level 2 drops the weights: until `/collective_rpc` has loaded them again, a wake is
//! followed by gibberish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::knobs::Wake;
use crate::state::{Engine, Phase, add, pause};

/// What became of a request to sleep or wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// 400: the query makes no sense.
    BadQuery(&'static str),
    /// 500.
    Failed,
}

/// What happens to running generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Abort,
    Wait,
    Keep,
}

fn mode(query: &BTreeMap<String, String>) -> Result<Mode, Outcome> {
    match query.get("mode").map(String::as_str) {
        None | Some("abort") => Ok(Mode::Abort),
        Some("wait") => Ok(Mode::Wait),
        Some("keep") => Ok(Mode::Keep),
        Some(_) => Err(Outcome::BadQuery("mode must be abort, wait or keep")),
    }
}

async fn quiesce(engine: &Arc<Engine>, mode: Mode) {
    match mode {
        Mode::Abort => engine.control.send_modify(|control| control.epoch += 1),
        Mode::Keep => return,
        Mode::Wait => {}
    }
    // The engine owns the sender, so the wait ends only by its condition.
    let mut running = engine.running.subscribe();
    drop(running.wait_for(|running| *running == 0).await);
}

pub(crate) async fn sleep(engine: &Arc<Engine>, query: &BTreeMap<String, String>) -> Outcome {
    let level: u8 = match query.get("level").map_or("1", String::as_str) {
        "0" => 0,
        "1" => 1,
        "2" => 2,
        _ => return Outcome::BadQuery("level must be 0, 1 or 2"),
    };
    let mode = match mode(query) {
        Ok(mode) => mode,
        Err(outcome) => return outcome,
    };
    let _turn = engine.sleep_lock.lock().await;
    if engine.control.borrow().asleep.is_some() {
        return Outcome::Done;
    }
    let knobs = engine.knobs();
    if mode == Mode::Wait {
        // New requests wait while the running ones end.
        engine.control.send_modify(|control| control.closed = true);
        quiesce(engine, mode).await;
        engine.control.send_modify(|control| {
            control.closed = false;
            control.asleep = Some(level);
        });
    } else {
        engine.control.send_modify(|control| control.asleep = Some(level));
        quiesce(engine, mode).await;
    }
    add(&engine.counters.sleeps, 1);
    if level == 0 {
        return Outcome::Done;
    }
    let at = usize::from(level - 1);
    if level == 2 {
        engine.control.send_modify(|control| control.gibberish = true);
    }
    pause(knobs.sleep_time[at]).await;
    if engine.config.sleep_mode {
        let overhead = knobs.vram.map_or(0, |vram| vram.overhead);
        let residue = knobs.residue[at].unwrap_or(overhead);
        let awake = engine.memory.held();
        engine.awake_bytes.fetch_max(awake, Ordering::SeqCst);
        if engine.memory.resize(residue.min(awake), knobs.flavor).is_err() {
            return Outcome::Failed;
        }
    }
    Outcome::Done
}

/// Wakes wholly, or with the tag `weights` alone in part: the rest stays asleep until the next call.
pub(crate) async fn wake(engine: &Arc<Engine>, tags: &[String]) -> Outcome {
    if tags.iter().any(|tag| tag != "weights" && tag != "kv_cache") {
        return Outcome::BadQuery("tags must be weights or kv_cache");
    }
    let _turn = engine.sleep_lock.lock().await;
    let Some(level) = engine.control.borrow().asleep else { return Outcome::Done };
    let knobs = engine.knobs();
    let at = usize::from(level.clamp(1, 2) - 1);
    if level > 0 {
        match knobs.wake[at] {
            Wake::Hang => std::future::pending().await,
            Wake::Error => {
                engine.strike(crate::knobs::Death::Engine);
                return Outcome::Failed;
            }
            Wake::Gibberish => engine.control.send_modify(|control| control.gibberish = true),
            Wake::Ok => {}
        }
        pause(knobs.wake_time[at]).await;
        let whole = engine.awake_bytes.load(Ordering::SeqCst);
        let partial = tags == ["weights"];
        let weights = knobs.vram.map_or(0, |vram| vram.weights + vram.overhead).min(whole);
        let wanted = if partial { weights } else { whole };
        if wanted > 0 && engine.memory.resize(wanted, knobs.flavor).is_err() {
            // Out of memory on wake kills the real engine's core.
            engine.strike(crate::knobs::Death::Engine);
            return Outcome::Failed;
        }
        if partial && wanted < whole {
            return Outcome::Done;
        }
    }
    add(&engine.counters.wakes, 1);
    engine.control.send_modify(|control| control.asleep = None);
    Outcome::Done
}

/// `/collective_rpc`: runs a method in all workers; here that which loads the weights in place.
pub(crate) fn rpc(engine: &Arc<Engine>, body: &[u8]) -> Outcome {
    let call: Value = serde_json::from_slice(body).unwrap_or_default();
    if call["method"] != "reload_weights" {
        return Outcome::BadQuery("the only method here is reload_weights");
    }
    // A knob says that the weights come back wrong.
    let broken = engine.knobs().wake[1] == Wake::Gibberish;
    engine.control.send_modify(|control| control.gibberish = broken);
    Outcome::Done
}

pub(crate) async fn hold(engine: &Arc<Engine>, query: &BTreeMap<String, String>) -> Outcome {
    match mode(query) {
        Ok(mode) => {
            engine.control.send_modify(|control| {
                control.closed = true;
                control.paused = mode != Mode::Wait;
            });
            quiesce(engine, mode).await;
            engine.control.send_modify(|control| {
                control.closed = false;
                control.paused = true;
            });
            Outcome::Done
        }
        Err(outcome) => outcome,
    }
}

pub(crate) fn resume(engine: &Arc<Engine>) -> Outcome {
    engine.control.send_modify(|control| control.paused = false);
    Outcome::Done
}

/// Whether the engine says that it sleeps.
pub(crate) fn is_sleeping(engine: &Engine) -> bool {
    let control = engine.control.borrow();
    control.asleep.is_some() && control.phase == Phase::Ready
}
