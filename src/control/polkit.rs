//! Who may: polkit on the system bus, the bus's owner on a user's.
//!
//! Invariants: fail closed. A polkit that is absent, broken or late denies, also root; nothing is remembered from one call to the
//! next; the subject is the caller's name on the bus, which the bus vouches for; `details` stay empty, for a daemon that is not root
//! may not pass any.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use zbus::message::{Flags, Header};
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use super::error::{Code, Error};

/// How long the bus may think.
const TIME: Duration = Duration::from_secs(10);

/// How long polkit may think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// By its rules alone.
    pub rules: Duration,
    /// With a person who is asked for a password.
    pub person: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { rules: Duration::from_secs(10), person: Duration::from_secs(120) }
    }
}

/// How long polkit may think while others wait for the answer: about what is only shown, and for a setter.
const GLANCE: Duration = Duration::from_secs(1);

/// What a call does, in polkit's words: `org.hostler1.policy` defines each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Load, wake, pin or measure a model; check the host.
    LoadModel,
    /// Unload, unpin or put to sleep.
    UnloadModel,
    /// Make busy models leave for another.
    Evict,
    /// Apply the configuration.
    Reload,
    /// Read what an engine wrote.
    ReadLogs,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::LoadModel, Self::UnloadModel, Self::Evict, Self::Reload, Self::ReadLogs];

    /// polkit's name for it.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::LoadModel => "org.hostler1.load-model",
            Self::UnloadModel => "org.hostler1.unload-model",
            Self::Evict => "org.hostler1.evict",
            Self::Reload => "org.hostler1.reload",
            Self::ReadLogs => "org.hostler1.read-logs",
        }
    }
}

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// polkit, on the system bus, where it answers in time.
    Polkit(Patience),
    /// A user's own bus: the same user may do all, and nobody else anything.
    Owner {
        /// That user.
        uid: u32,
    },
}

impl Gate {
    /// Whether the sender of a call may do that.
    ///
    /// # Errors
    /// If not, or if that cannot be found out.
    pub(super) async fn check(
        self,
        connection: &Connection,
        call: &Header<'_>,
        action: Action,
    ) -> Result<(), Error> {
        let interactive = call.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        self.ask(connection, call, action, interactive).await
    }

    /// The same without a person and with a polkit that is quick, for a caller that keeps others waiting meanwhile.
    ///
    /// # Errors
    /// If not, or if that cannot be found out in a moment.
    pub(super) async fn check_briefly(
        self,
        connection: &Connection,
        call: &Header<'_>,
        action: Action,
    ) -> Result<(), Error> {
        let hurried = match self {
            Self::Polkit(patience) => {
                Self::Polkit(Patience { rules: patience.rules.min(GLANCE), ..patience })
            }
            Self::Owner { .. } => self,
        };
        hurried.ask(connection, call, action, false).await
    }

    /// The same for what is only shown to who may see it: nobody is asked for a password for that, nor kept by a polkit that hangs.
    pub(super) async fn allows(
        self,
        connection: &Connection,
        call: &Header<'_>,
        action: Action,
    ) -> bool {
        self.check_briefly(connection, call, action).await.is_ok()
    }

    async fn ask(
        self,
        connection: &Connection,
        call: &Header<'_>,
        action: Action,
        interactive: bool,
    ) -> Result<(), Error> {
        match self {
            Self::Polkit(patience) => {
                ask_polkit(connection, call, action, patience, interactive).await
            }
            Self::Owner { uid } => ask_bus(connection, call, uid, action).await,
        }
    }
}

fn denied(action: Action, why: &str) -> Error {
    Error::new(Code::AccessDenied, format!("{} is denied: {why}", action.id()))
}

async fn ask_bus(
    connection: &Connection,
    call: &Header<'_>,
    uid: u32,
    action: Action,
) -> Result<(), Error> {
    let sender = call.sender().ok_or_else(|| denied(action, "the call has no sender"))?;
    let ask = async {
        let bus = fdo::DBusProxy::new(connection).await?;
        bus.get_connection_unix_user(sender.clone().into()).await
    };
    match tokio::time::timeout(TIME, ask).await {
        Ok(Ok(caller)) if caller == uid => Ok(()),
        Ok(Ok(caller)) => {
            Err(denied(action, &format!("user {caller} is not the owner of this daemon")))
        }
        Ok(Err(err)) => Err(denied(action, &format!("the bus does not say who called: {err}"))),
        Err(_) => Err(denied(action, "the bus does not say who called")),
    }
}

async fn ask_polkit(
    connection: &Connection,
    call: &Header<'_>,
    action: Action,
    patience: Patience,
    interactive: bool,
) -> Result<(), Error> {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    let subject = Subject::new_for_message_header(call)
        .map_err(|err| denied(action, &format!("the caller is not known: {err}")))?;
    let flags = if interactive {
        CheckAuthorizationFlags::ALLOW_USER_INTERACTION
    } else {
        CheckAuthorizationFlags::empty()
    };
    let time = if interactive { patience.person } else { patience.rules };
    let id = format!("hostler-{}", CALLS.fetch_add(1, Ordering::Relaxed));
    let absent = |err: zbus::Error| {
        denied(
            action,
            &format!("polkit does not answer ({err}); install polkitd, or start polkit.service"),
        )
    };
    let polkit = AuthorityProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(absent)?;
    let details = HashMap::new();
    let asked = polkit.check_authorization(&subject, action.id(), &details, flags, &id);
    let Ok(answer) = tokio::time::timeout(time, asked).await else {
        // Nobody waits for the answer any more; a dialog that is still shown goes away. Nor does anybody wait for that.
        tokio::spawn(async move {
            let cancel = polkit.cancel_check_authorization(&id);
            let _ = tokio::time::timeout(TIME, cancel).await;
        });
        return Err(denied(action, &format!("polkit gave no answer within {time:?}")));
    };
    let answer = answer.map_err(absent)?;
    if answer.is_authorized {
        return Ok(());
    }
    if answer.is_challenge && !interactive {
        let message = format!(
            "{} needs authentication: call as root, as a member of the group hostler-admin, or with interactive authorization",
            action.id()
        );
        return Err(Error::new(Code::InteractiveAuthorizationRequired, message));
    }
    Err(denied(action, "polkit does not allow it; members of the group hostler-admin may"))
}
