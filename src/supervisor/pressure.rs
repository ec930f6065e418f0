//! The part of the core that gives way: to processes of others that grow, and to devices that are lost.

use super::effect::{Effect, StopReason};
use super::instance::Life;
use super::state::{Settings, State};
use crate::plan::{self, Relief, Victim};
use crate::types::{Fault, FaultCode, GpuId, InstanceId, Moment};

/// So many readings in a row have to say so: a single one may have caught a process on its way out, or a driver at a bad
/// moment.
const READINGS: u32 = 2;

impl State {
    /// After a reading: idle models yield where others use up the headroom.
    pub(super) fn yield_to_others(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let pressed: Vec<GpuId> = self.reliefs(now).into_iter().map(|r| r.gpu).collect();
        self.pressed.retain(|gpu, _| pressed.contains(gpu));
        let mut pinched = Vec::new();
        for gpu in pressed {
            let readings = self.pressed.entry(gpu.clone()).or_default();
            *readings = readings.saturating_add(1);
            if *readings < READINGS {
                continue;
            }
            // One after the other: who leaves for one device may be on this one too, and who falls asleep takes of the host's
            // memory.
            let Some(relief) = self.reliefs(now).into_iter().find(|r| r.gpu == gpu) else {
                continue;
            };
            if relief.victims.is_empty() {
                pinched.push(format!(
                    "{}: {} of its headroom is in use, and no model there may leave now",
                    relief.gpu, relief.missing
                ));
            }
            if self.stops_in_vain(&relief.victims) {
                pinched.push(format!(
                    "{}: {} of its headroom is in use, and podman does not answer, so no model leaves",
                    relief.gpu, relief.missing
                ));
                continue;
            }
            for Victim { instance, leave } in relief.victims {
                self.put_off(now, &instance.model);
                self.leave(now, &instance.model, leave, StopReason::Pressure, out);
            }
        }
        self.note("memory_pressure", now, pinched);
    }

    fn reliefs(&self, now: Moment) -> Vec<Relief> {
        let Settings { rules, release, .. } = &self.settings;
        plan::relieve(now, *rules, &self.ledger, &self.holders(None), release.slack)
    }

    /// After a reading: what runs on a lost device has failed; what runs elsewhere has not.
    pub(super) fn fail_on_lost(&mut self, out: &mut Vec<Effect>) {
        let lost: Vec<(GpuId, String)> =
            self.ledger.lost().map(|(gpu, why)| (gpu.clone(), why.to_owned())).collect();
        self.losses.retain(|gpu, _| lost.iter().any(|(l, _)| l == gpu));
        for (gpu, why) in lost {
            let readings = self.losses.entry(gpu.clone()).or_default();
            *readings = readings.saturating_add(1);
            if *readings >= READINGS {
                for id in self.running_on(&gpu) {
                    let text = format!("its device {gpu} is lost: {why}");
                    self.begin_stop(&id, Some(Fault::new(FaultCode::GpuLost, text)), out);
                }
            }
        }
    }

    fn running_on(&self, gpu: &GpuId) -> Vec<InstanceId> {
        let instances = self.models.values().filter_map(|m| m.instance.as_ref());
        let there = instances.filter(|i| i.placement.gpus.contains(gpu));
        let running = there.filter(|i| match i.life {
            Life::Loading { .. }
            | Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Waking { .. }
            | Life::Draining { .. } => true,
            // A launch cannot be interrupted; it will fail, or be stopped once it is through.
            Life::Pulling { .. }
            | Life::Starting { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. } => false,
        });
        running.map(|i| i.id.clone()).collect()
    }

    /// Keeps one problem up to date: `what` is wrong now; nothing: it is not.
    pub(super) fn note(&mut self, code: &'static str, now: Moment, what: Vec<String>) {
        if what.is_empty() {
            self.problems.remove(code);
        } else {
            let since = self.problems.get(code).map_or(now, |p| p.1);
            self.problems.insert(code, (what.join("; "), since));
        }
    }
}
