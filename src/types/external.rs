//! A model that somebody else runs: an endpoint that requests are routed to, and nothing else.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::{DoorSpec, ModelName, Moment};

/// Where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// TLS, with the system's certificates.
    pub tls: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What its paths begin with: empty, or `/` and no `/` at the end. A final `/v1` of the URL is not part of it.
    pub prefix: String,
}

impl Origin {
    /// As `Host` has it.
    #[must_use]
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

/// What readers see of one: no phase and no memory, because neither is this host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ExternalStatus {
    /// Configured name.
    pub name: ModelName,
    /// Other names it answers to.
    pub aliases: Vec<ModelName>,
    /// Where its requests go. Its key is no part of it.
    pub url: String,
    /// How it was when it was last asked.
    pub health: ExternalHealth,
    /// Why it is not well; `None` where it is, or nobody knows.
    pub why: Option<String>,
    /// Since when that is its health; `None`: that is not known yet.
    pub since: Option<Moment>,
}

impl ExternalStatus {
    /// Whether a name is its own or one of its aliases.
    #[must_use]
    pub fn answers_to(&self, name: &str) -> bool {
        self.name.as_str() == name || self.aliases.iter().any(|alias| alias.as_str() == name)
    }
}

/// How a model that runs elsewhere is, by its answer to `health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExternalHealth {
    /// It is not known yet: it was not asked, or missed fewer questions in a row than mean something.
    Unknown,
    /// It answers with success.
    Well,
    /// It does not; requests for it are refused.
    Unwell,
}

impl ExternalHealth {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Well => "well",
            Self::Unwell => "unwell",
        }
    }
}

/// `engine = "external"`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalSpec {
    /// What clients write in `"model"`.
    pub name: ModelName,
    /// Other names for it.
    pub aliases: Vec<ModelName>,
    /// `url`.
    pub origin: Origin,
    /// Name of the systemd credential that holds its key; `None`: it asks for none.
    pub key_credential: Option<String>,
    /// What is asked to know whether it lives; begins with `/`.
    pub health: String,
    /// What the front door does for it.
    pub door: DoorSpec,
}
