//! A model that somebody else runs: an endpoint that requests are routed to, and nothing else.

use std::fmt;

use super::{DoorSpec, ModelName};

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
