//! `[startup]` as written.

use schemars::JsonSchema;
use toml::Spanned;

use super::DurationText;

/// The checks before the service reports that it is ready.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawStartup {
    /// How long all checks together may be retried, 1s to 1h. Default "60s".
    #[schemars(with = "DurationText", extend("default" = "60s"))]
    pub timeout: Option<Spanned<DurationText>>,
}
