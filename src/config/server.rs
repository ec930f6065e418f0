//! `[server]`, `[metrics]` and `[auth]`.
//!
//! Owner: [`super::parse`]. Pure.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use crate::types::Bytes;

use super::check::{self, HOUR, SECOND};
use super::raw::{RawAuth, RawMetrics, RawServer};
use super::source::Report;
use super::types::{KeySource, MetricsConfig, ServerConfig};

/// So many come over TCP and as many by Unix sockets, and a request in hand has a descriptor on the engine's side as well: four times this
/// fits into `LimitNOFILE=` of the units, with some thousands left for all else.
const CONNECTIONS_MAX: u32 = 15_000;

/// `keyed`: who comes in is asked for a key.
pub(super) fn server(report: &mut Report<'_>, raw: RawServer, keyed: bool) -> ServerConfig {
    let far = |address: &SocketAddr| {
        (!keyed && !address.ip().is_loopback()).then(|| {
            format!(
                "only loopback addresses are allowed, not \"{address}\", because requests are not authenticated; name the keys \
                 of those who may come in ([auth] keys_file), or listen on 127.0.0.1 or [::1] and let a reverse proxy check who \
                 may come in"
            )
        })
    };
    let given = raw.listen.as_ref().map(|list| listen(report, "server.listen", list, far));
    let listen = given.unwrap_or_else(ServerConfig::default_listen);
    let mut time = |key: &str, value: Option<&Spanned<_>>, limits, default: Duration| {
        check::duration(report, key, value, limits).unwrap_or(default)
    };
    let millis = Duration::from_millis;
    let max_wait = time("server.max_wait", raw.max_wait.as_ref(), (SECOND, HOUR), 240 * SECOND);
    let stream_limits = (SECOND, 24 * HOUR);
    let max_stream_wait =
        time("server.max_stream_wait", raw.max_stream_wait.as_ref(), stream_limits, HOUR);
    let answer_timeout =
        time("server.answer_timeout", raw.answer_timeout.as_ref(), stream_limits, 600 * SECOND);
    let after_limits = (Duration::ZERO, HOUR);
    let feedback_after =
        time("server.feedback_after", raw.feedback_after.as_ref(), after_limits, millis(1500));
    let interval_limits = (millis(100), 600 * SECOND);
    let feedback_interval = time(
        "server.feedback_interval",
        raw.feedback_interval.as_ref(),
        interval_limits,
        5 * SECOND,
    );
    let body_limits = (Bytes(1 << 10), Bytes::gib(1));
    let max_body = check::bytes(report, "server.max_body", raw.max_body.as_ref(), body_limits);
    let max_body = max_body.unwrap_or(Bytes::mib(32));
    let buffer_limits = (max_body, Bytes::gib(1 << 10));
    let max_buffered =
        check::bytes(report, "server.max_buffered", raw.max_buffered.as_ref(), buffer_limits);
    let mut count = |key: &str, value: Option<&Spanned<i64>>, max, default: usize| {
        let number = check::count(report, key, value, max);
        number.and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
    };
    let connections = raw.max_connections.as_ref();
    ServerConfig {
        listen,
        max_connections: count("server.max_connections", connections, CONNECTIONS_MAX, 4096),
        max_queue: count("server.max_queue", raw.max_queue.as_ref(), 65_536, 512),
        max_wait,
        max_stream_wait,
        answer_timeout,
        feedback_after,
        feedback_interval,
        max_body,
        max_buffered: max_buffered.unwrap_or(Bytes::gib(1).max(max_body)),
        hosts: hosts(report, raw.hosts.as_deref().unwrap_or_default()),
        origins: origins(report, raw.origins.as_deref().unwrap_or_default()),
    }
}

impl ServerConfig {
    /// Where a daemon without systemd's sockets listens when it is told nothing: on loopback, as far as the host has it.
    #[must_use]
    pub fn default_listen() -> Vec<SocketAddr> {
        vec![
            SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 8711)),
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 8711)),
        ]
    }
}

/// `[metrics]`. `taken`: where the front door listens.
pub(super) fn metrics(
    report: &mut Report<'_>,
    raw: &RawMetrics,
    taken: &[SocketAddr],
) -> MetricsConfig {
    let is_taken = |address: &SocketAddr| {
        let message =
            || format!("\"{address}\" is an address of [server] listen; take another port");
        taken.contains(address).then(message)
    };
    let list = raw.listen.as_ref();
    let listen = list.map(|list| listen(report, "metrics.listen", list, is_taken));
    MetricsConfig { listen: listen.unwrap_or_default() }
}

/// Addresses; `wrong` says what is wrong with one.
fn listen(
    report: &mut Report<'_>,
    key: &str,
    list: &Spanned<Vec<Spanned<String>>>,
    wrong: impl Fn(&SocketAddr) -> Option<String>,
) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for value in list.get_ref() {
        let (text, offset) = (value.get_ref(), value.span().start);
        match text.parse::<SocketAddr>() {
            Err(_) => {
                let message = format!(
                    "{text:?} is not \"IP:PORT\"; write for example \"127.0.0.1:8711\" or \"[::1]:8711\""
                );
                report.at(offset, key, message);
            }
            Ok(address) if addresses.contains(&address) => {
                report.at(offset, key, format!("{text:?} is listed twice; remove one"));
            }
            Ok(address) => match wrong(&address) {
                Some(message) => report.at(offset, key, message),
                None => addresses.push(address),
            },
        }
    }
    if list.get_ref().is_empty() {
        let message = "is empty, so nobody could connect; name an address or remove the key";
        report.at(list.span().start, key, message);
    }
    addresses
}

fn hosts(report: &mut Report<'_>, list: &[Spanned<String>]) -> Vec<String> {
    let mut good = Vec::new();
    for value in list {
        let text = value.get_ref();
        let address = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let named = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let ok = match address {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !text.is_empty() && text.chars().all(named),
        };
        if ok {
            good.push(text.to_ascii_lowercase());
        } else {
            let message = format!(
                "{text:?} is not a host's name or address without a port; write for example \"gpu.example.org\" or \"[::1]\""
            );
            report.at(value.span().start, "server.hosts", message);
        }
    }
    good
}

fn origins(report: &mut Report<'_>, list: &[Spanned<String>]) -> Vec<String> {
    let mut good = Vec::new();
    for value in list {
        let text = value.get_ref();
        let authority = text.split_once("://").filter(|(scheme, _)| {
            !scheme.is_empty()
                && scheme.chars().all(|c| c.is_ascii_lowercase() || "+-.".contains(c))
        });
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:[]_".contains(c);
        // Browsers leave a scheme's own port out, so that an origin with it would be nobody's.
        let own_port = |(scheme, a): (&str, &str)| match scheme {
            "https" => a.ends_with(":443"),
            "http" => a.ends_with(":80"),
            _ => false,
        };
        let ok = authority
            .is_some_and(|it| !it.1.is_empty() && it.1.chars().all(plain) && !own_port(it));
        // The two origins without a host that browsers write: of a file, and of what is nobody's.
        if ok || ["*", "null", "file://"].contains(&text.as_str()) {
            good.push(text.clone());
        } else {
            let message = format!(
                "{text:?} is not an origin as browsers write it: \"https://HOST\" or \"https://HOST:PORT\", in lower case, \
                 without a path and without the scheme's own port"
            );
            report.at(value.span().start, "server.origins", message);
        }
    }
    good
}

/// Where the keys are; `None`: none are asked for.
pub(super) fn auth(report: &mut Report<'_>, raw: &RawAuth) -> Option<KeySource> {
    let path: Option<PathBuf> = check::path(report, "auth.keys_file", raw.keys_file.as_ref());
    let credential = raw
        .keys_credential
        .as_ref()
        .and_then(|value| check::credential(report, "auth.keys_credential", value));
    if let (Some(_), Some(value)) = (&raw.keys_file, &raw.keys_credential) {
        let message = "keys_file says already where the keys are; remove one of them";
        report.at(value.span().start, "auth.keys_credential", message);
    }
    path.map(KeySource::File).or(credential.map(KeySource::Credential))
}
