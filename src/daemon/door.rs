//! From the configuration to the front door's rules.

use std::sync::Arc;

use crate::checks::{Exit, StartFailure};
use crate::config::Config;
use crate::proxy::{Key, Listener, Rules};

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
    };
    let models = config.models.values();
    let aliases =
        models.clone().flat_map(|m| m.aliases.iter().map(|a| (a.clone(), m.name.clone())));
    Rules {
        keys: config.keys.iter().map(key).collect(),
        hosts: server.hosts.clone(),
        origins: server.origins.clone(),
        aliases: aliases.collect(),
        models: models.map(|m| (m.name.clone(), Arc::new(m.door.clone()))).collect(),
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
