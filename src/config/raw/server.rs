//! `[server]`, `[metrics]` and `[auth]` as written.

use schemars::JsonSchema;
use toml::Spanned;

use super::{BytesText, DurationText, Written};

/// The HTTP endpoint.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawServer {
    /// Addresses "IP:PORT" to listen on when systemd hands over no sockets; loopback only, unless [auth] names keys. Default
    /// ["127.0.0.1:8711", "[::1]:8711"], the latter where the host has IPv6.
    #[schemars(with = "Vec<String>", extend("default" = ["127.0.0.1:8711", "[::1]:8711"]))]
    pub listen: Option<Spanned<Vec<Spanned<String>>>>,
    /// The longest that a request waits for its model to be loaded, 1s to 1h; then it is answered 503 with Retry-After
    /// while the load goes on. Default "240s", because common HTTP clients give up at 300 s.
    #[schemars(with = "DurationText", extend("default" = "240s"))]
    pub max_wait: Option<Spanned<DurationText>>,
    /// The longest that a stream waits which gets signs of life meanwhile (loading_feedback of its model), 1s to 24h. Default
    /// "1h".
    #[schemars(with = "DurationText", extend("default" = "1h"))]
    pub max_stream_wait: Option<Spanned<DurationText>>,
    /// The longest that an engine may take to begin its answer, 1s to 24h: to its first token where it streams, else to its last one.
    /// Read at the start only. Default "10m".
    #[schemars(with = "DurationText", extend("default" = "10m"))]
    pub answer_timeout: Option<Spanned<DurationText>>,
    /// How long a stream waits for its model in silence, 0s to 1h; then its client gets status 200 and signs of life. Default
    /// "1500ms".
    #[schemars(with = "DurationText", extend("default" = "1500ms"))]
    pub feedback_after: Option<Spanned<DurationText>>,
    /// Between two signs of life, 100ms to 10m. Default "5s".
    #[schemars(with = "DurationText", extend("default" = "5s"))]
    pub feedback_interval: Option<Spanned<DurationText>>,
    /// The largest request body, 1KiB to 1GiB. Default "32MiB".
    #[schemars(with = "BytesText", extend("default" = "32MiB"))]
    pub max_body: Option<Spanned<BytesText>>,
    /// Bytes of request bodies that are held at once over all connections, at least max_body, at most 1TiB. Default "1GiB".
    #[schemars(with = "BytesText", extend("default" = "1GiB"))]
    pub max_buffered: Option<Spanned<BytesText>>,
    /// Client connections served at once over TCP, and as many by Unix sockets, 1 to 15000; one that waits for its next request makes room where there is none. Default 4096.
    #[schemars(with = "u32", range(min = 1, max = 15000), extend("default" = 4096))]
    pub max_connections: Option<Spanned<i64>>,
    /// Requests that may wait for one model, 1 to 65536; further ones are answered 503. Default 512.
    #[schemars(with = "u32", range(min = 1, max = 65536), extend("default" = 512))]
    pub max_queue: Option<Spanned<i64>>,
    /// Names and addresses, without ports, that a request's Host may have; others are answered 421. Default []: any with keys or on the Unix socket, else localhost and addresses.
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub hosts: Option<Vec<Spanned<String>>>,
    /// Origins of web pages that may use the endpoint from a browser, "https://HOST[:PORT]", or "*" for any. Default []: none.
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub origins: Option<Vec<Spanned<String>>>,
}

/// Where metrics are shown beside the front door.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawMetrics {
    /// Addresses "IP:PORT" that have /metrics, /metrics/models/NAME and /health and nothing else, for whoever can reach them, without a
    /// key: for Prometheus on another host. The daemon binds them itself, for which its service needs a drop-in: it says which. Default
    /// [], none.
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub listen: Option<Spanned<Vec<Spanned<String>>>>,
}

impl Written for RawMetrics {
    const FORM: &'static str = "a table, [metrics]";
}

/// Who may come in. Without this section: everybody who can connect.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAuth {
    /// Absolute path of the file that lists the keys' digests (docs/api.md). Default: none, no keys are asked for.
    #[schemars(with = "String")]
    pub keys_file: Option<Spanned<String>>,
    /// Name of the systemd credential that holds that list instead: LoadCredential=NAME:/path in the unit.
    /// Default: none.
    #[schemars(with = "String")]
    pub keys_credential: Option<Spanned<String>>,
}

/// The file of keys: `[keys.NAME]`, one table a key.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawKeys {
    /// By the holder's name.
    pub keys: std::collections::BTreeMap<Spanned<String>, super::Table<RawKey>>,
}

/// One key.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawKey {
    /// SHA-256 of the key, 64 hexadecimal digits. Required.
    pub sha256: Option<Spanned<String>>,
    /// Models that it may use. Default: all.
    pub models: Option<Vec<Spanned<String>>>,
    /// Requests in a minute, 1 to 1000000. Default: any number.
    pub per_minute: Option<Spanned<i64>>,
    /// Requests at once, 1 to 65536. Default: any number.
    pub concurrent: Option<Spanned<i64>>,
    /// Weight where keys share a model's max_concurrent, 1 to 1000. Default 1.
    pub share: Option<Spanned<i64>>,
    /// May load, unload, pin and put to sleep over HTTP (the dashboard's buttons). Default false.
    pub admin: Option<Spanned<bool>>,
}
