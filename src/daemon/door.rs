//! From the configuration to the front door's rules.

use std::sync::Arc;

use hyper::header::HeaderValue;

use crate::checks::{Exit, StartFailure};
use crate::config::Config;
use crate::proxy::{External, Key, Listener, Rules};
use crate::types::ExternalSpec;

/// The rules that the configuration asks for.
#[must_use]
pub fn rules(config: &Config) -> Rules {
    let server = &config.server;
    let key = |key: &crate::config::KeyConfig| Key {
        name: key.name.clone(),
        digest: key.digest,
        models: key.models.clone(),
        per_minute: key.per_minute,
        concurrent: key.concurrent,
        share: key.share,
        admin: key.admin,
    };
    let own = config.models.values().map(|m| (&m.name, &m.aliases, &m.door));
    let models = own.chain(config.externals.values().map(|m| (&m.name, &m.aliases, &m.door)));
    let aliases = models
        .clone()
        .flat_map(|(name, aliases, _)| aliases.iter().map(|alias| (alias.clone(), name.clone())));
    let external = |spec: &ExternalSpec| External {
        origin: spec.origin.clone(),
        // It was read as visible characters.
        key: config.external_keys.get(&spec.name).and_then(|key| {
            let mut value = HeaderValue::try_from(&key.0).ok()?;
            value.set_sensitive(true);
            Some(value)
        }),
        health: spec.health.clone(),
    };
    let externals = config.externals.values();
    Rules {
        keys: config.keys.iter().map(key).collect(),
        hosts: server.hosts.clone(),
        origins: server.origins.clone(),
        aliases: aliases.collect(),
        models: models.map(|(name, _, door)| (name.clone(), Arc::new(door.clone()))).collect(),
        externals: externals.map(|e| (e.name.clone(), Arc::new(external(e)))).collect(),
        feedback_after: server.feedback_after,
        feedback_interval: server.feedback_interval,
        stream_wait: server.max_stream_wait,
        max_wait: server.max_wait,
        max_queue: server.max_queue,
        max_buffered: server.max_buffered,
    }
}

/// Refuses to serve other hosts without asking for keys, whoever bound the sockets.
///
/// # Errors
/// Which socket it is.
pub fn guarded(config: &Config, sockets: &[Listener]) -> Result<(), StartFailure> {
    if !config.keys.is_empty() {
        return Ok(());
    }
    for socket in sockets {
        match socket.exposed() {
            Ok(None) => {}
            Ok(Some(address)) => {
                let message = format!(
                    "the socket on {address} can be reached from other hosts, and no keys are asked for; name them in [auth] \
                     keys_file, or listen on loopback (ListenStream= in hostler.socket, [server] listen)"
                );
                return Err(StartFailure::new(Exit::Config, message));
            }
            Err(error) => {
                let message = format!("the address of a listening socket cannot be read: {error}");
                return Err(StartFailure::new(Exit::Listen, message));
            }
        }
    }
    Ok(())
}
