//! Where spans go.

use std::fmt;
use std::path::PathBuf;

use super::Origin;

/// A collector that takes OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collector {
    /// At an address; the origin's prefix is the whole path of its requests. Never over TLS.
    Http(Origin),
    /// At a Unix socket, by the usual path.
    Unix(PathBuf),
}

impl Collector {
    /// Where OTLP puts traces.
    pub const PATH: &str = "/v1/traces";

    /// The path of its requests.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Http(origin) => &origin.prefix,
            Self::Unix(_) => Self::PATH,
        }
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(origin) => write!(f, "{origin}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
