//! What podman can answer wrong, sorted by cause.
//!
//! Purpose: one error type for both clients (`podman-api` and [`super::wire`]), and its translation into a [`Fault`] with a text that names
//! the thing, the reason and the fix. Invariants: podman's HTTP status is never decided by, because it is 500 for a taken name and for a
//! full disk alike and differs between versions; the `cause` and message are.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::types::{CDI_WRITE, Fault, FaultCode, ImageRef, one_line};

/// Whether podman is the one of whoever runs the daemon (`hostlerd --user`) and not the service user's.
static OWN: AtomicBool = AtomicBool::new(false);

/// Says whose podman the fixes are about, once and before any is made: the service user's, or a desktop user's `own`.
pub fn fixes_are_for(own: bool) {
    OWN.store(own, Ordering::Relaxed);
}

/// Why podman refused, read from its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No container (or pod) of that name or ID.
    NoSuchContainer,
    /// Another container has the name.
    NameTaken,
    /// The image is not in the storage.
    ImageUnknown,
    /// The registry has no such image.
    ImageRefused,
    /// The registry does not show it to us, or has none of the name.
    ImageDenied,
    /// The image's name has no registry, and podman knows none for it.
    ShortName,
    /// A CDI device does not resolve.
    CdiUnresolvable,
    /// It does, and what it brings along is not there, or its hook fails.
    CdiStale,
    /// No space or no inodes left.
    StorageFull,
    /// All of podman's locks are in use.
    LocksExhausted,
    /// The source of a bind mount does not exist.
    BindSourceMissing,
    /// podman's user may not look at the source of a bind mount.
    BindSourceClosed,
    /// The container is in a state in which this cannot be done (already stopped, being removed).
    WrongState,
    /// The helper for `init` and pods is not installed.
    InitMissing,
    /// None of the known ones.
    Other,
}

impl Cause {
    /// Reads podman's words; `text` is its message and cause together.
    #[must_use]
    pub fn of(text: &str) -> Self {
        // Ordered: an OCI error may quote a path that holds words of a later line.
        const KNOWN: &[(&str, Cause)] = &[
            ("unresolvable CDI devices", Cause::CdiUnresolvable),
            ("no space left on device", Cause::StorageFull),
            ("disk quota exceeded", Cause::StorageFull),
            ("allocation failed; exceeded num_locks", Cause::LocksExhausted),
            ("CDI host device", Cause::CdiStale),
            ("nvidia-cdi-hook", Cause::CdiStale),
            ("nvidia-ctk", Cause::CdiStale),
            ("that name is already in use", Cause::NameTaken),
            ("already in use by", Cause::NameTaken),
            ("no such container", Cause::NoSuchContainer),
            ("no such pod", Cause::NoSuchContainer),
            ("no container with name or ID", Cause::NoSuchContainer),
            ("image not known", Cause::ImageUnknown),
            ("no such image", Cause::ImageUnknown),
            // Also of a reference that cannot name any image.
            ("failed to find image", Cause::ImageUnknown),
            ("manifest unknown", Cause::ImageRefused),
            ("name unknown", Cause::ImageRefused),
            ("unauthorized", Cause::ImageDenied),
            ("authentication required", Cause::ImageDenied),
            ("requested access to the resource is denied", Cause::ImageDenied),
            ("short-name", Cause::ShortName),
            ("catatonit", Cause::InitMissing),
            ("init binary not found", Cause::InitMissing),
            ("container state improper", Cause::WrongState),
            ("cannot get namespace path unless container", Cause::WrongState),
        ];
        // Go writes the system's words in lower case, crun begins them with a capital.
        const FULL: [&str; 2] = ["no space left on device", "disk quota exceeded"];
        let lower = text.to_ascii_lowercase();
        let told =
            |words: &&str| text.contains(words) || (FULL.contains(words) && lower.contains(words));
        let found = KNOWN.iter().find(|(words, _)| told(words)).map(|(_, cause)| *cause);
        match found {
            Some(cause) => cause,
            None if text.contains("statfs ") && text.contains("no such file or directory") => {
                Self::BindSourceMissing
            }
            None if text.contains("statfs ") && text.contains("permission denied") => {
                Self::BindSourceClosed
            }
            // crun, of a library of the driver from before its upgrade.
            None if text.contains("cannot stat")
                && ["nvidia", "libcuda"].iter().any(|name| text.contains(name)) =>
            {
                Self::CdiStale
            }
            None => Self::Other,
        }
    }
}

/// What went wrong in one call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PodmanError {
    /// Nothing listens on the socket, so nothing was asked.
    #[error("podman's API at {socket:?} cannot be reached ({reason})")]
    Unreachable {
        /// Where it should listen.
        socket: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// No answer in time; what was asked may have been done.
    #[error("podman did not answer \"{what}\" within {after:?}")]
    Deadline {
        /// The call.
        what: String,
        /// The deadline.
        after: Duration,
    },
    /// The connection broke; what was asked may have been done.
    #[error("the connection to podman broke during \"{what}\" ({reason})")]
    Lost {
        /// The call.
        what: String,
        /// The client's words.
        reason: String,
    },
    /// An answer that no podman gives; what was asked may have been done.
    #[error("podman's answer to \"{what}\" makes no sense ({detail})")]
    Garbage {
        /// The call.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// podman's own no.
    #[error("podman refused \"{what}\": {text}")]
    Refused {
        /// The call.
        what: String,
        /// Sorted.
        cause: Cause,
        /// podman's words.
        text: String,
    },
}

impl PodmanError {
    /// A refusal from podman's words, of which an OCI runtime's may be several lines.
    #[must_use]
    pub fn refused(what: &str, text: &str) -> Self {
        let said = one_line(text.trim());
        let text = if said.is_empty() { "no reason given".to_owned() } else { said };
        Self::Refused { what: what.to_owned(), cause: Cause::of(&text), text }
    }

    /// The cause, if podman itself said no.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Refused { cause, .. } => Some(*cause),
            Self::Unreachable { .. }
            | Self::Deadline { .. }
            | Self::Lost { .. }
            | Self::Garbage { .. } => None,
        }
    }

    /// Whether podman may have done what was asked although the call failed; then look before acting again.
    #[must_use]
    pub fn ambiguous(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Lost { .. } | Self::Garbage { .. })
    }

    /// The fault to report for `thing`; `code` is used where the cause does not name a better one.
    #[must_use]
    pub fn fault(&self, code: FaultCode, thing: &str) -> Fault {
        let (code, fix) = match self {
            Self::Unreachable { .. } | Self::Deadline { .. } | Self::Lost { .. } => {
                (FaultCode::PodmanUnreachable, format!("look at \"{}\"", hand().status()))
            }
            Self::Garbage { .. } => {
                (code, "check that the configured socket is podman's, version 4.3 or later".into())
            }
            Self::Refused { cause, text, .. } => cause_fix(*cause, code, text),
        };
        let tail = if fix.is_empty() { String::new() } else { format!("; {fix}") };
        Fault::new(code, format!("{thing}: {self}{tail}"))
    }
}

/// Code and fix for a cause that podman told in `text`; `code` where the cause decides nothing.
fn cause_fix(cause: Cause, code: FaultCode, text: &str) -> (FaultCode, String) {
    match cause {
        Cause::CdiUnresolvable => (
            FaultCode::CdiUnresolvable,
            format!("run \"{CDI_WRITE}\" and compare with \"nvidia-ctk cdi list\""),
        ),
        Cause::CdiStale => (
            FaultCode::CdiUnresolvable,
            format!(
                "the CDI specification is not that of this driver: after its upgrade reboot, or reload its modules (docs/operate.md), then run \"{CDI_WRITE}\""
            ),
        ),
        Cause::StorageFull => (FaultCode::StorageFull, full(text)),
        Cause::LocksExhausted => (
            code,
            format!(
                "remove unused containers and pods, or raise num_locks in containers.conf and run \"{}\"",
                hand().run("system renumber", "")
            ),
        ),
        Cause::BindSourceMissing => (
            FaultCode::WeightsMissing,
            "create it, or correct the model's weights in the configuration; the service user must be able to reach it"
                .into(),
        ),
        Cause::BindSourceClosed => (FaultCode::WeightsMissing, hand().closed().to_owned()),
        Cause::ImageUnknown | Cause::ImageRefused | Cause::ImageDenied | Cause::ShortName => {
            (FaultCode::ImageMissing, String::new())
        }
        Cause::InitMissing => (code, "install the package \"catatonit\"".into()),
        Cause::NameTaken => (code, "the next start uses a new name".into()),
        Cause::NoSuchContainer | Cause::WrongState | Cause::Other => (code, String::new()),
    }
}

/// Where podman puts what it fetches or loads before it is in the storage, unless it was told otherwise.
const COPIES: [&str; 3] = ["/var/tmp", "/tmp", "/run/user"];

/// What to do about a file system that is full, which may be another than the storage's.
fn full(text: &str) -> String {
    let elsewhere = COPIES.iter().find(|dir| {
        // The path as podman names it, and not the end of a longer one.
        text.match_indices(&format!("{dir}/"))
            .any(|(at, _)| !text.get(..at).is_some_and(|before| before.ends_with(path_char)))
    });
    if let Some(dir) = elsewhere {
        return format!(
            "free space on the file system of {dir}, where podman puts first what it fetches: \"df -h {dir}\"; {}",
            hand().elsewhere()
        );
    }
    format!(
        "free space in podman's storage: \"{}\" shows what uses it, \"image prune\" in place of \"system df\" removes unused images",
        hand().ask("system df")
    )
}

fn path_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/._-".contains(c)
}

/// Whose podman it is, which decides what a person types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hand {
    Service,
    Own,
}

fn hand() -> Hand {
    if OWN.load(Ordering::Relaxed) { Hand::Own } else { Hand::Service }
}

/// Commands for people to copy. Each works from any directory: podman, begun by `sudo -u` where its user may not look, ends at once.
impl Hand {
    /// What podman's API can do.
    fn ask(self, words: &str) -> String {
        match self {
            Self::Service => {
                format!(
                    "sudo podman --remote --url unix:///run/hostler/service/podman.sock {words}"
                )
            }
            Self::Own => format!("podman {words}"),
        }
    }

    /// What podman has to do itself, perhaps with a file that only the person may read.
    fn run(self, words: &str, input: &str) -> String {
        match self {
            Self::Service => format!(
                "sudo systemd-run --machine=hostler@.host --user --pipe --wait podman {words}{input}"
            ),
            Self::Own => format!("podman {words}{input}"),
        }
    }

    fn status(self) -> &'static str {
        match self {
            Self::Service => {
                "sudo systemctl --user -M hostler@ status hostler-podman.socket hostler-podman.service"
            }
            Self::Own => {
                "systemctl --user status hostler-user-podman.socket hostler-user-podman.service"
            }
        }
    }

    /// Has podman put elsewhere what it fetches. Its API reads the packaged containers.conf when it starts; a user's own does not win.
    fn elsewhere(self) -> &'static str {
        match self {
            Self::Service => {
                "its API puts it into /var/lib/hostler/tmp once it is started anew, which ends no model: \"sudo systemctl --user --machine=hostler@ restart hostler-podman.service\""
            }
            Self::Own => {
                "another directory: \"systemctl --user edit hostler-user-podman.service\" with [Service] and Environment=TMPDIR=/DIRECTORY, then \"systemctl --user restart hostler-user-podman.service\", which ends no model"
            }
        }
    }

    /// Weights where podman may not look.
    fn closed(self) -> &'static str {
        match self {
            Self::Service => {
                "the service user may not look there, as into a home: put the files where it may, \"sudo install -m 644 -t /var/lib/hostler/models FILE\", and correct the model's weights in the configuration"
            }
            Self::Own => "open the directories on the way to it for you (chmod u+x)",
        }
    }

    /// Logs in to a registry, in a file that outlives a boot.
    fn login(self, registry: &str) -> String {
        match self {
            Self::Service => format!(
                "sudo runuser -u hostler -- env -C / podman login --authfile /var/lib/hostler/.config/containers/auth.json {registry}"
            ),
            Self::Own => {
                format!("podman login --authfile ~/.config/containers/auth.json {registry}")
            }
        }
    }

    /// An image that is not there; `cause`: of a pull that was refused.
    fn missing(self, image: &ImageRef, why: &str, cause: Option<Cause>) -> String {
        let whole = image.whole();
        let fix = match cause {
            _ if image.is_local() => {
                format!("build it there, or load it: {}", self.run("load", " < IMAGE.tar"))
            }
            Some(Cause::ShortName) => {
                format!("write it with its registry in the model's image, as {whole}")
            }
            Some(Cause::ImageDenied) => {
                let registry = whole.split('/').next().unwrap_or_default();
                format!(
                    "log in to its registry, or correct the name, of which some registries say the same where there is none: {}",
                    self.login(registry)
                )
            }
            Some(Cause::ImageRefused) => {
                "its registry has no such image: look at the name and the tag in the model's image"
                    .to_owned()
            }
            _ => format!("fetch it: {}", self.ask(&format!("pull {image}"))),
        };
        let whose = match self {
            Self::Service => "the service user's",
            Self::Own => "your",
        };
        format!("image {image} is not in {whose} storage ({why}); {fix}")
    }
}

/// The command that kills what is left in a control group of podman's.
pub(super) fn kill_command(scope: &str) -> String {
    match hand() {
        Hand::Service => format!("sudo systemctl --user -M hostler@ kill --signal=KILL {scope}"),
        Hand::Own => format!("systemctl --user kill --signal=KILL {scope}"),
    }
}

/// The fault for an image that is not there; `why` says why it was not fetched.
#[must_use]
pub fn image_missing(image: &ImageRef, why: &str) -> Fault {
    Fault::new(FaultCode::ImageMissing, hand().missing(image, why, None))
}

/// The same for one that podman would not fetch, or does not find; the fix is that of the refusal's cause.
#[must_use]
pub fn image_refused(image: &ImageRef, error: &PodmanError) -> Fault {
    let why = error.to_string();
    Fault::new(FaultCode::ImageMissing, hand().missing(image, &why, error.cause()))
}

#[cfg(test)]
mod tests;
