//! `engine = "external"`: a model that is routed to and never started.
//!
//! Owner: [`super::model`]. Pure.

use toml::Spanned;

use crate::types::{ExternalSpec, ModelName, Origin};

use super::check;
use super::door::door;
use super::model::Entry;
use super::raw::RawModel;
use super::source::Report;

pub(super) fn external(
    report: &mut Report<'_>,
    entry: &Entry,
    name: Option<ModelName>,
    aliases: Vec<ModelName>,
) -> Option<ExternalSpec> {
    let raw = &entry.raw;
    for (key, at) in of_containers(raw) {
        let message = "is for engines that Hostler runs; remove it, or change the engine";
        report.at(at, &entry.key(key), message);
    }
    let key = entry.key("url");
    let origin = match &raw.url {
        Some(value) => url(report, &key, value),
        None => {
            let source = report.source_of(entry.offset());
            if !report.is_reported(Some(source), &key) {
                let message = "must be given with engine = \"external\": \"http://HOST:PORT\" or \"https://HOST\"";
                report.at(entry.offset(), &key, message);
            }
            None
        }
    };
    let credential_key = entry.key("key_credential");
    let key_credential =
        raw.key_credential.as_ref().and_then(|v| check::credential(report, &credential_key, v));
    let health = raw.health.as_ref().map(|value| {
        let text = value.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~?=&".contains(c);
        if !text.starts_with('/') || !text.chars().all(plain) {
            let message = format!("must be a path that begins with /, not {text:?}");
            report.at(value.span().start, &entry.key("health"), message);
        }
        text.clone()
    });
    let door = door(report, entry);
    Some(ExternalSpec {
        name: name?,
        aliases,
        origin: origin?,
        key_credential,
        health: health.unwrap_or_else(|| "/v1/models".to_owned()),
        door,
    })
}

/// Keys that belong to external engines alone.
pub(super) fn refuse(report: &mut Report<'_>, entry: &Entry) {
    let raw = &entry.raw;
    let keys =
        [("url", &raw.url), ("key_credential", &raw.key_credential), ("health", &raw.health)];
    for (key, value) in keys {
        if let Some(value) = value {
            let message = "is for engine = \"external\" only; remove it";
            report.at(value.span().start, &entry.key(key), message);
        }
    }
}

/// Keys of a container, a device or a life, with where they are.
fn of_containers(raw: &RawModel) -> Vec<(&'static str, usize)> {
    fn at<T>(value: &Option<Spanned<T>>) -> Option<usize> {
        value.as_ref().map(|v| v.span().start)
    }
    let places = [
        ("image", at(&raw.image)),
        ("weights", at(&raw.weights)),
        ("projector", at(&raw.projector)),
        ("transport", at(&raw.transport)),
        ("vram", at(&raw.vram)),
        ("context", at(&raw.context)),
        ("parallel", at(&raw.parallel)),
        ("gpu_count", at(&raw.gpu_count)),
        ("gpus", at(&raw.gpus)),
        ("args", raw.args.as_ref().and_then(|a| a.first()).map(|a| a.span().start)),
        ("env", raw.env.as_ref().and_then(|env| env.keys().map(|name| name.span().start).min())),
        ("shm_size", at(&raw.shm_size)),
        ("idle_timeout", at(&raw.idle_timeout)),
        ("load_timeout", at(&raw.load_timeout)),
        ("health_interval", at(&raw.health_interval)),
        ("stop_timeout", at(&raw.stop_timeout)),
        ("pin", at(&raw.pin)),
        ("priority", at(&raw.priority)),
        ("on_full", at(&raw.on_full)),
        ("sleep_level", at(&raw.sleep_level)),
        ("sleep_timeout", at(&raw.sleep_timeout)),
    ];
    places.into_iter().filter_map(|(key, at)| Some((key, at?))).collect()
}

fn url(report: &mut Report<'_>, key: &str, value: &Spanned<String>) -> Option<Origin> {
    let parsed = parse(value.get_ref());
    if parsed.is_none() {
        let message = format!(
            "{:?} is not \"http://HOST[:PORT][/PREFIX]\" or the same with https, as a client is told its base URL (without /chat/completions); keys go into key_credential",
            value.get_ref()
        );
        report.at(value.span().start, key, message);
    }
    parsed
}

/// An address, as people write it.
pub(super) fn parse(text: &str) -> Option<Origin> {
    let (tls, rest) = match text.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("http://")?),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let named = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(named) {
        return None;
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|p| *p > 0)?,
        None => {
            if tls {
                443
            } else {
                80
            }
        }
    };
    let prefix = path.trim_end_matches('/');
    // The path that a client would ask, in place of what it is told as its base.
    let asks =
        ["/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"];
    let asks = asks.iter().any(|path| prefix.ends_with(path));
    // People write the URL as clients want it.
    let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
    let climbs = prefix.split('/').any(|part| part == ".." || part == ".");
    let ok = prefix.chars().all(plain) && !prefix.contains("//") && !climbs && !asks;
    ok.then(|| Origin { tls, host: host.to_owned(), port, prefix: prefix.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let shown = |text: &str| parse(text).map(|o| (o.to_string(), o.port));
        assert_eq!(
            shown("https://api.example.org/v1"),
            Some(("https://api.example.org".into(), 443))
        );
        assert_eq!(shown("http://10.0.0.7:8000"), Some(("http://10.0.0.7:8000".into(), 8000)));
        assert_eq!(shown("http://[::1]:8000/x/v1/"), Some(("http://[::1]:8000/x".into(), 8000)));
        assert_eq!(
            shown("https://gw.example.org/team-a"),
            Some(("https://gw.example.org/team-a".into(), 443))
        );
        for bad in [
            "",
            "gpu:8000",
            "ftp://a",
            "http://",
            "http://u:p@h",
            "http://h:0",
            "http://h:99999",
            "http://h/../x",
            "http://h/a?b",
            "http://h/a#b",
            "http://[::1",
            "http://a b",
            "http://h//x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
