//! Mutants that are cores with other settings, or other models.

use std::time::Duration;

use hostler::supervisor::state::Settings;
use hostler::types::{Bytes, EngineKind, ModelSpec};

use super::Mutant;

impl Mutant {
    pub(super) fn settings(self, settings: &mut Settings) {
        if self == Self::NoHeadroom {
            settings.headroom = Bytes(0);
        }
        if self == Self::NoBudget && settings.rules.sleep.host_ram_budget > Bytes(0) {
            settings.rules.sleep.host_ram_budget = Bytes(10_000);
        }
        if self == Self::NoTurns {
            settings.turn_after = None;
        }
        if self == Self::NoResidency {
            settings.rules.min_residency = Duration::ZERO;
        }
        if self == Self::Patient {
            settings.max_wait = Duration::from_secs(10_000);
        }
    }

    pub(super) fn spec(self, spec: &mut ModelSpec) {
        if self == Self::NoPriority {
            spec.priority = 0;
        }
        if self == Self::ProfilesNothing {
            spec.engine = EngineKind::Llamacpp;
        }
        if self == Self::NoPins {
            spec.pin = false;
        }
        if self == Self::IdleEarly {
            spec.idle_timeout = Some(Duration::from_millis(1));
        }
    }
}
