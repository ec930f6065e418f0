//! `[traces]`: where spans are sent.
//!
//! Owner: [`super::parse`]. Pure.

use schemars::JsonSchema;
use toml::Spanned;

use crate::types::Collector;

use super::check;
use super::error::{ConfigError, ConfigErrors};
use super::external;
use super::raw::Written;
use super::source::Report;
use super::types::Config;

/// Where spans of requests and loads are sent.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawTraces {
    /// A collector that takes OTLP over HTTP: "http://127.0.0.1:4318/v1/traces", or "unix:/path" of its socket. Needs a daemon that was built
    /// with the feature otlp (docs/traces.md); an address needs a drop-in for the service, too: the daemon says which. Default: none, nothing is traced.
    #[schemars(with = "String")]
    pub otlp: Option<Spanned<String>>,
    /// Which share of requests is traced that come without a `traceparent`, 0.0 to 1.0; with one, its flag decides. Default 1.0.
    #[schemars(with = "f64", range(min = 0.0, max = 1.0), extend("default" = 1.0))]
    pub sample: Option<Spanned<f64>>,
}

impl Written for RawTraces {
    const FORM: &'static str = "a table, [traces]";
}

/// `[traces]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracesConfig {
    /// Who takes the spans; `None`: nothing is traced.
    pub otlp: Option<Collector>,
    /// Of a million requests that nobody has decided about, so many are traced; default all.
    pub sample: u32,
}

const ALL: u32 = 1_000_000;

pub(super) fn traces(report: &mut Report<'_>, raw: &RawTraces) -> TracesConfig {
    let otlp = raw.otlp.as_ref().and_then(|value| collector(report, value));
    let mut sample = ALL;
    if let Some(value) = &raw.sample {
        let share = *value.get_ref();
        if (0.0..=1.0).contains(&share) {
            sample = (share * f64::from(ALL)).round() as u32;
        } else {
            let message = format!("must be from 0.0 to 1.0, not {share}");
            report.at(value.span().start, "traces.sample", message);
        }
    }
    TracesConfig { otlp, sample }
}

fn collector(report: &mut Report<'_>, value: &Spanned<String>) -> Option<Collector> {
    const KEY: &str = "traces.otlp";
    let (text, at) = (value.get_ref(), value.span().start);
    if let Some(path) = text.strip_prefix("unix:") {
        let path = Spanned::new(value.span(), path.to_owned());
        return check::socket_path(report, KEY, Some(&path)).map(Collector::Unix);
    }
    let Some(mut origin) = external::parse(text) else {
        let message = format!(
            "{text:?} is neither \"http://HOST:PORT/PATH\" nor \"unix:/path\"; write for example \
             \"http://127.0.0.1:4318/v1/traces\""
        );
        report.at(at, KEY, message);
        return None;
    };
    if origin.tls {
        let message =
            "spans are not sent over https; name a collector on this host, which sends them on";
        report.at(at, KEY, message);
        return None;
    }
    if origin.prefix.is_empty() {
        Collector::PATH.clone_into(&mut origin.prefix);
    }
    Some(Collector::Http(origin))
}

/// The configuration, where this build can do what it says.
///
/// # Errors
/// If it asks for traces and this build has none.
pub(super) fn built(config: Config) -> Result<Config, ConfigErrors> {
    if cfg!(feature = "otlp") || config.traces.otlp.is_none() {
        return Ok(config);
    }
    let message = "this hostlerd was built without traces; build it with \"cargo build --release --features otlp\", or remove the key";
    Err(ConfigErrors::new(vec![ConfigError {
        path: None,
        position: None,
        key: Some("traces.otlp".to_owned()),
        message: message.to_owned(),
    }]))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Defaults, Source, parse};
    use super::*;

    fn read(traces: &str) -> Result<TracesConfig, String> {
        let text = format!("[gpu]\nbackend = \"host\"\n[traces]\n{traces}\n");
        let config = parse(&[Source::settings("/f", text)], &Defaults::system());
        config.map(|config| config.traces).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_collector_is_an_address_or_a_socket() {
        let of = |text: &str| read(&format!("otlp = \"{text}\"")).unwrap().otlp.unwrap();
        let usual = of("http://127.0.0.1:4318/v1/traces");
        assert_eq!(
            (usual.to_string().as_str(), usual.path()),
            ("http://127.0.0.1:4318/v1/traces", "/v1/traces")
        );
        assert_eq!(of("http://127.0.0.1:4318"), usual, "without a path it is OTLP's");
        assert_eq!(of("http://[::1]:9/x/").path(), "/x");
        let socket = of("unix:/run/otel.sock");
        assert_eq!(socket, Collector::Unix(PathBuf::from("/run/otel.sock")));
        assert_eq!(socket.path(), "/v1/traces");
        for (bad, why) in [
            (
                "https://collector:4318/v1/traces",
                "/f:4:8: traces.otlp: spans are not sent over https",
            ),
            ("127.0.0.1:4318", "traces.otlp: \"127.0.0.1:4318\" is neither"),
            ("http://user@host/v1/traces", "is neither"),
            ("unix:run/otel.sock", "traces.otlp"),
        ] {
            let error = read(&format!("otlp = \"{bad}\"")).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_share_is_of_one() {
        assert_eq!(read("").unwrap(), TracesConfig { otlp: None, sample: ALL });
        for (text, want) in [("0.25", 250_000), ("0", 0), ("1", ALL), ("1.0", ALL)] {
            assert_eq!(read(&format!("sample = {text}")).unwrap().sample, want, "{text}");
        }
        for bad in ["1.5", "-0.1", "nan"] {
            let error = read(&format!("sample = {bad}")).unwrap_err();
            assert!(error.contains("traces.sample: must be from 0.0 to 1.0"), "{error}");
        }
    }

    #[test]
    fn a_build_without_traces_says_how_to_get_them() {
        let text = "[gpu]\nbackend = \"host\"\n[traces]\notlp = \"unix:/run/otel.sock\"\n";
        let config = parse(&[Source::settings("/f", text)], &Defaults::system()).unwrap();
        let built = built(config);
        if cfg!(feature = "otlp") {
            assert!(built.is_ok());
        } else {
            let error = built.unwrap_err().to_string();
            assert!(
                error.starts_with("traces.otlp: ") && error.contains("--features otlp"),
                "{error}"
            );
        }
    }
}
