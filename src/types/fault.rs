//! What can go wrong with one instance, as the core needs to know it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::last_words::last_words;

/// Kinds of failure of an effect. Closed: the core decides by it, people search for it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// The image is not in the service user's storage and may not or could not be pulled.
    ImageMissing,
    /// The image was missing and is here now; nothing was started. The core plans again: a pull may take an hour.
    ImagePulled,
    /// The image's name means another image than the plan was made for; the core plans again.
    ImageChanged,
    /// Pulling the image failed on the way.
    PullFailed,
    /// The weights are not where the configuration says.
    WeightsMissing,
    /// A CDI device does not resolve.
    CdiUnresolvable,
    /// The container storage is full.
    StorageFull,
    /// podman's API does not answer, or not in time.
    PodmanUnreachable,
    /// podman refused to create the container.
    CreateFailed,
    /// podman created the container and could not start it.
    StartFailed,
    /// A running container lacks a restriction that was asked for, or its image would lift one.
    HardeningMismatch,
    /// The engine ended by itself.
    EngineExited,
    /// A device that it runs on is lost.
    GpuLost,
    /// The engine runs and does not answer, or not as it should.
    Unhealthy,
    /// The engine was not ready within the model's load timeout.
    LoadTimeout,
    /// The container could not be stopped or removed.
    StopFailed,
    /// A bug or a surprise of the operating system.
    Internal,
}

impl FaultCode {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::ImageMissing,
        Self::ImagePulled,
        Self::ImageChanged,
        Self::PullFailed,
        Self::WeightsMissing,
        Self::CdiUnresolvable,
        Self::StorageFull,
        Self::PodmanUnreachable,
        Self::CreateFailed,
        Self::StartFailed,
        Self::HardeningMismatch,
        Self::EngineExited,
        Self::GpuLost,
        Self::Unhealthy,
        Self::LoadTimeout,
        Self::StopFailed,
        Self::Internal,
    ];

    /// Whether a load may have failed so for its devices, and may succeed on others.
    #[must_use]
    pub const fn may_be_the_devices(self) -> bool {
        match self {
            Self::CdiUnresolvable | Self::StartFailed | Self::EngineExited | Self::LoadTimeout => {
                true
            }
            Self::ImageMissing
            | Self::ImagePulled
            | Self::ImageChanged
            | Self::PullFailed
            | Self::WeightsMissing
            | Self::StorageFull
            | Self::PodmanUnreachable
            | Self::CreateFailed
            | Self::HardeningMismatch
            | Self::GpuLost
            | Self::Unhealthy
            | Self::StopFailed
            | Self::Internal => false,
        }
    }

    /// The word for it in logs, HTTP bodies and D-Bus.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ImageMissing => "image_missing",
            Self::ImagePulled => "image_pulled",
            Self::ImageChanged => "image_changed",
            Self::PullFailed => "pull_failed",
            Self::WeightsMissing => "weights_missing",
            Self::CdiUnresolvable => "cdi_unresolvable",
            Self::StorageFull => "storage_full",
            Self::PodmanUnreachable => "podman_unreachable",
            Self::CreateFailed => "create_failed",
            Self::StartFailed => "start_failed",
            Self::HardeningMismatch => "hardening_mismatch",
            Self::EngineExited => "engine_exited",
            Self::GpuLost => "gpu_lost",
            Self::Unhealthy => "unhealthy",
            Self::LoadTimeout => "load_timeout",
            Self::StopFailed => "stop_failed",
            Self::Internal => "internal",
        }
    }
}

/// A failure with the text a person needs: what failed, on which thing, why, and the fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error, schemars::JsonSchema)]
#[error("{message}")]
pub struct Fault {
    /// The kind.
    pub code: FaultCode,
    /// The whole story in one line.
    pub message: String,
    /// The last lines the container wrote, oldest first, at most 200 of 64 KiB; empty where there are none, or who asks may not read them.
    #[schemars(with = "Vec<String>")]
    pub log_tail: Arc<[String]>,
    /// The container wrote something, which who is told this may not read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub log_withheld: bool,
    /// Something of the container may still be there, so it must be stopped before the next start.
    #[serde(skip)]
    pub left_behind: bool,
}

impl Fault {
    /// Lines of a container's log that are kept of it. vLLM writes two tracebacks of some fifty lines each after the one that says why.
    pub const LINES_MAX: usize = 200;
    /// Bytes of them: a status carries those of all models that have failed, and one message of a bus holds 32 MiB.
    pub const BYTES_MAX: usize = 64 << 10;
    /// Of them those that clients get, whose errors have to stay small.
    const LINES_FOR_CLIENTS: usize = 20;

    /// A failure without log lines. Of several lines the message is made one.
    pub fn new(code: FaultCode, message: impl Into<String>) -> Self {
        let message = one_line(message);
        Self { code, message, log_tail: Arc::default(), log_withheld: false, left_behind: false }
    }

    /// The same failure, after which something of the container may still be there.
    #[must_use]
    pub fn leaving_something(mut self) -> Self {
        self.left_behind = true;
        self
    }

    /// The same failure with what the container wrote last, as much of it as is kept.
    #[must_use]
    pub fn with_log(mut self, mut log: Vec<String>) -> Self {
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len();
            bytes <= Self::BYTES_MAX
        };
        let kept = log.iter().rev().take(Self::LINES_MAX).take_while(fits).count();
        self.log_tail = log.split_off(log.len() - kept).into();
        self
    }

    /// The line of them that says why, as far as that can be told.
    #[must_use]
    pub fn last_words(&self) -> Option<&str> {
        last_words(&self.log_tail)
    }

    /// The last of them, for clients.
    #[must_use]
    pub fn short_log(&self) -> &[String] {
        let skip = self.log_tail.len().saturating_sub(Self::LINES_FOR_CLIENTS);
        self.log_tail.get(skip..).unwrap_or_default()
    }
}

/// The same text on one line, without control characters: what others say goes into lines of logs, into systemd's status and onto
/// terminals, where a line end begins something else.
pub fn one_line(text: impl Into<String>) -> String {
    let text = text.into();
    if !text.contains(char::is_control) {
        return text;
    }
    let parts = text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whoever_wrote_it() {
        let said = "crun: no:\n  \u{1b}[31mline two\u{1b}[0m\r\n\tlast\u{85}";
        let fault = Fault::new(FaultCode::StartFailed, said);
        assert_eq!(fault.message, "crun: no: [31mline two [0m last");
        assert_eq!(one_line("  two  blanks stay "), "  two  blanks stay ");
    }

    #[test]
    fn the_wire_word_is_the_printed_word() {
        for code in FaultCode::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
        let fault = Fault::new(FaultCode::Internal, "x").with_log(vec!["a".into()]);
        assert_eq!(fault.to_string(), "x");
        assert_eq!(*fault.log_tail, ["a"]);
    }

    #[test]
    fn of_a_log_the_last_lines_are_kept_within_a_bound() {
        let of = |lines: Vec<String>| Fault::new(FaultCode::EngineExited, "x").with_log(lines);
        let many = of((0..999).map(|n| n.to_string()).collect());
        assert_eq!((many.log_tail.len(), many.log_tail[0].as_str()), (Fault::LINES_MAX, "799"));
        assert_eq!((many.short_log().len(), many.short_log()[19].as_str()), (20, "998"));
        let long = of(vec!["y".repeat(Fault::BYTES_MAX / 3); 9]);
        assert_eq!(long.log_tail.len(), 3);
        assert_eq!(long.short_log().len(), 3);
    }
}
