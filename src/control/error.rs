//! D-Bus errors: the one place where refusals become `org.hostler1.Error.*`.
//!
//! Invariants: [`Denied`] is mapped here and nowhere else in control; the name is for programs and never changes, the message is
//! for people and says what, on which thing, why, and the fix. Whoever may not call learns it by the bus's own names.

use std::fmt;

use zbus::message::{Header, Message};
use zbus::names::ErrorName;

use crate::types::Denied;

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which kind; its name on the wire is [`Code::name`].
    pub code: Code,
    /// For people.
    pub message: String,
}

/// Kinds of errors. Closed; docs/cli.md has the row of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// No such model is configured.
    UnknownModel,
    /// No such job is known, or it is forgotten by now.
    UnknownJob,
    /// An argument, an option's name or its type is not what the method takes.
    InvalidArgument,
    /// The model is not in a state in which that can be done.
    Conflict,
    /// It can never fit this host as configured.
    NeverFits,
    /// There is no room, and none was to be made.
    NoRoom,
    /// It is still loading.
    StillLoading,
    /// The load failed, or the engine died.
    LoadFailed,
    /// Too many wait already.
    QueueFull,
    /// Its memory could not be measured.
    Unmeasurable,
    /// It was unloaded meanwhile.
    Unloaded,
    /// The job was cancelled.
    Cancelled,
    /// The daemon stops.
    ShuttingDown,
    /// The configuration on disk is wrong; the message names file and line, and nothing was changed.
    ConfigInvalid,
    /// There is no log to open.
    NoLog,
    /// A bug, or the operating system refused something.
    Internal,
    /// The caller may not do that.
    AccessDenied,
    /// The caller could, after having proven who it is: call with interaction allowed.
    InteractiveAuthorizationRequired,
}

impl Code {
    /// Every kind.
    pub const ALL: [Self; 18] = [
        Self::UnknownModel,
        Self::UnknownJob,
        Self::InvalidArgument,
        Self::Conflict,
        Self::NeverFits,
        Self::NoRoom,
        Self::StillLoading,
        Self::LoadFailed,
        Self::QueueFull,
        Self::Unmeasurable,
        Self::Unloaded,
        Self::Cancelled,
        Self::ShuttingDown,
        Self::ConfigInvalid,
        Self::NoLog,
        Self::Internal,
        Self::AccessDenied,
        Self::InteractiveAuthorizationRequired,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownModel => "org.hostler1.Error.UnknownModel",
            Self::UnknownJob => "org.hostler1.Error.UnknownJob",
            Self::InvalidArgument => "org.hostler1.Error.InvalidArgument",
            Self::Conflict => "org.hostler1.Error.Conflict",
            Self::NeverFits => "org.hostler1.Error.NeverFits",
            Self::NoRoom => "org.hostler1.Error.NoRoom",
            Self::StillLoading => "org.hostler1.Error.StillLoading",
            Self::LoadFailed => "org.hostler1.Error.LoadFailed",
            Self::QueueFull => "org.hostler1.Error.QueueFull",
            Self::Unmeasurable => "org.hostler1.Error.Unmeasurable",
            Self::Unloaded => "org.hostler1.Error.Unloaded",
            Self::Cancelled => "org.hostler1.Error.Cancelled",
            Self::ShuttingDown => "org.hostler1.Error.ShuttingDown",
            Self::ConfigInvalid => "org.hostler1.Error.ConfigInvalid",
            Self::NoLog => "org.hostler1.Error.NoLog",
            Self::Internal => "org.hostler1.Error.Internal",
            Self::AccessDenied => "org.freedesktop.DBus.Error.AccessDenied",
            Self::InteractiveAuthorizationRequired => {
                "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
            }
        }
    }
}

impl Error {
    /// An error.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// An argument that is none.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        let code = match &denied {
            Denied::UnknownModel { .. } => Code::UnknownModel,
            Denied::NeverFits { .. } => Code::NeverFits,
            Denied::NoRoom { .. } => Code::NoRoom,
            Denied::StillLoading { .. } => Code::StillLoading,
            Denied::LoadFailed { .. } => Code::LoadFailed,
            Denied::QueueFull { .. } => Code::QueueFull,
            Denied::Unmeasurable { .. } => Code::Unmeasurable,
            Denied::Unloaded { .. } => Code::Unloaded,
            Denied::Conflict { .. } => Code::Conflict,
            Denied::ShuttingDown => Code::ShuttingDown,
        };
        Self::new(code, denied.to_string())
    }
}

impl From<zbus::Error> for Error {
    fn from(err: zbus::Error) -> Self {
        Self::new(Code::Internal, format!("the bus failed: {err}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl zbus::DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(self.message.as_str(),))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::from_static_str_unchecked(self.code.name())
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_name_and_is_used_once() {
        let mut names = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(ErrorName::try_from(code.name()).is_ok(), "{code:?}");
            assert!(names.insert(code.name()), "{code:?}");
        }
    }
}
