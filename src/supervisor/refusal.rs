//! The part of the core that says no: to those who waited too long, and to those for whom there is no room.

use std::time::Duration;

use super::effect::{Effect, Notice};
use super::queue::Purpose;
use super::state::Model;
use crate::types::{Bytes, Denied, Moment};

/// What a load is taken to last before one was seen.
const LOAD_GUESS: Duration = Duration::from_secs(30);

impl Model {
    /// Why a request that has waited its time gets nothing.
    pub(super) fn too_long(&self, now: Moment) -> Denied {
        let model = self.spec.name.clone();
        match &self.instance {
            Some(instance) if instance.is_loading() => {
                let expected = self.last_load.unwrap_or(LOAD_GUESS);
                let left = expected.saturating_sub(now.since(instance.ordered));
                let retry_after = left.max(Duration::from_secs(1));
                Denied::StillLoading { model, phase: instance.phase(), retry_after }
            }
            Some(_) | None => {
                let why = self.waiting_for.clone();
                let why = why.unwrap_or_else(|| "its earlier container is still stopping".into());
                let retry_after = self.last_load.unwrap_or(LOAD_GUESS);
                Denied::NoRoom { model, why, report: self.report.clone(), retry_after }
            }
        }
    }

    pub(super) fn wait(&mut self, why: String, out: &mut Vec<Effect>) {
        // Free bytes change at every reading; only the first reason is news.
        if self.waiting_for.is_none() && (self.wanted || !self.queue.is_empty()) {
            let notice = Notice::Waiting { model: self.spec.name.clone(), why: why.clone() };
            out.push(Effect::Notice(notice));
        }
        self.waiting_for = Some(why);
    }

    /// There is no room, and nobody is to wait for it. A pin stays wanted: it is loaded when there is room.
    pub(super) fn turn_away(&mut self, why: &str, out: &mut Vec<Effect>) {
        let denied = Denied::NoRoom {
            model: self.spec.name.clone(),
            why: why.to_owned(),
            report: self.report.clone(),
            retry_after: self.last_load.unwrap_or(LOAD_GUESS),
        };
        self.deny_all(&denied, out);
    }

    /// Refuses everybody who waits. Of what operators wished only a pin is left.
    pub(super) fn deny_all(&mut self, denied: &Denied, out: &mut Vec<Effect>) {
        self.discovery.end(denied, out);
        for waiter in self.queue.drain() {
            out.push(Effect::Deny { waiter: waiter.id, denied: denied.clone() });
            if waiter.purpose == Purpose::Ready {
                self.wanted = self.pinned;
            }
        }
    }

    pub(super) fn refuse(&mut self, need: Bytes, largest: Bytes, out: &mut Vec<Effect>) {
        let model = self.spec.name.clone();
        self.waiting_for = Some(format!("{need} on one device; the largest offers {largest}"));
        let denied = Denied::NeverFits { model, need, largest, report: self.report.clone() };
        self.deny_all(&denied, out);
    }
}
