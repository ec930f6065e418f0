//! Where a model is in its life.

use std::fmt;

use serde::Serialize;

/// A model's phase, in the words that D-Bus, HTTP, logs and metrics use too.
///
/// ```text
///  stopped ─▶ waiting ─▶ starting ─────▶ loading ─▶ ready ─▶ draining ─▶ stopping ─▶ stopped
///     ▲      (no room)    ▲  ▼              │         │                     ▲
///     │                  pulling            └─────────┴───── fault ─────────┤
///   failed ◀────────────────────────────────────────────────────────────────┘ until the retry is due
///
///  ready ─▶ dozing ─▶ asleep ─▶ waking ─▶ ready      each of them may also go to stopping
/// ```
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No container; the next request starts one.
    Stopped,
    /// Wanted, and waits for memory or for another start on the same GPU.
    Waiting,
    /// podman fetches the image.
    Pulling,
    /// The container is being created and started.
    Starting,
    /// The container runs, the engine loads its weights.
    Loading,
    /// Serves requests.
    Ready,
    /// Takes no new request; running ones finish.
    Draining,
    /// It is being put to sleep, and what it still holds is being measured.
    Dozing,
    /// The container runs and holds next to no device memory; the next request wakes it.
    Asleep,
    /// It takes its memory back and is asked whether it still answers as before.
    Waking,
    /// The container is being stopped and removed.
    Stopping,
    /// The last start or the running engine failed; it is retried on demand after a delay.
    Failed,
}

impl Phase {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 12] = [
        Self::Stopped,
        Self::Waiting,
        Self::Pulling,
        Self::Starting,
        Self::Loading,
        Self::Ready,
        Self::Draining,
        Self::Dozing,
        Self::Asleep,
        Self::Waking,
        Self::Stopping,
        Self::Failed,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Pulling => "pulling",
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Dozing => "dozing",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_word_is_the_printed_word() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("\"{phase}\""));
        }
    }
}
