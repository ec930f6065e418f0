//! What a reload cannot apply.
//!
//! Purpose: names the settings that are read at the start alone, where they differ. Owner: [`super::reload`]. Invariant: each setting is
//! either named here or said to be in force at once; a new one does not compile before somebody has decided.

use crate::config::{
    Config, GpuConfig, LogConfig, MemoryConfig, MetricsConfig, PodmanConfig, PolicyConfig,
    ServerConfig, TracesConfig,
};

/// Settings that differ and are read at the start only, by the names that they have in the files.
pub(super) fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let Config {
        server,
        gpu,
        memory,
        podman,
        policy,
        metrics,
        traces,
        log,
        // The owner of the models and the front door have them anew with each reload.
        auth: _,
        keys: _,
        health: _,
        models: _,
        externals: _,
        external_keys: _,
        // A start is over.
        startup: _,
    } = old;
    let different = server_keys(server, &new.server)
        .into_iter()
        .chain(metrics_keys(metrics, &new.metrics))
        .chain(traces_keys(traces, &new.traces))
        .chain(gpu_keys(gpu, &new.gpu))
        .chain(memory_keys(memory))
        .chain(podman_keys(podman, &new.podman))
        .chain(policy_keys(policy, &new.policy))
        .chain(log_keys(log));
    different.filter(|(_, is)| *is).map(|(key, _)| key.to_owned()).collect()
}

/// Keys, and whether they differ.
type Keys<const N: usize> = [(&'static str, bool); N];

fn server_keys(old: &ServerConfig, new: &ServerConfig) -> Keys<4> {
    let ServerConfig {
        listen,
        max_body,
        max_connections,
        answer_timeout,
        max_wait: _,
        max_stream_wait: _,
        feedback_after: _,
        feedback_interval: _,
        max_buffered: _,
        max_queue: _,
        hosts: _,
        origins: _,
    } = old;
    [
        ("[server] listen", *listen != new.listen),
        ("[server] max_body", *max_body != new.max_body),
        ("[server] max_connections", *max_connections != new.max_connections),
        ("[server] answer_timeout", *answer_timeout != new.answer_timeout),
    ]
}

fn metrics_keys(old: &MetricsConfig, new: &MetricsConfig) -> Keys<1> {
    let MetricsConfig { listen } = old;
    [("[metrics] listen", *listen != new.listen)]
}

fn traces_keys(old: &TracesConfig, new: &TracesConfig) -> Keys<2> {
    let TracesConfig { otlp, sample } = old;
    [("[traces] otlp", *otlp != new.otlp), ("[traces] sample", *sample != new.sample)]
}

fn gpu_keys(old: &GpuConfig, new: &GpuConfig) -> Keys<4> {
    let GpuConfig { backend, devices, budget, nvml_library, headroom: _ } = old;
    [
        ("[gpu] backend", *backend != new.backend),
        ("[gpu] devices", *devices != new.devices),
        ("[gpu] budget", *budget != new.budget),
        ("[gpu] nvml_library", *nvml_library != new.nvml_library),
    ]
}

const fn memory_keys(old: &MemoryConfig) -> Keys<0> {
    let MemoryConfig { host_ram_budget: _, sleep_residual_max: _ } = old;
    []
}

fn podman_keys(old: &PodmanConfig, new: &PodmanConfig) -> Keys<4> {
    let PodmanConfig { socket, namespace, engine_dir, pull } = old;
    [
        ("[podman] socket", *socket != new.socket),
        ("[podman] namespace", *namespace != new.namespace),
        ("[podman] engine_dir", *engine_dir != new.engine_dir),
        ("[podman] pull", *pull != new.pull),
    ]
}

fn policy_keys(old: &PolicyConfig, new: &PolicyConfig) -> Keys<1> {
    let PolicyConfig {
        drain_timeout,
        on_stop: _,
        eviction: _,
        min_residency: _,
        turn_after: _,
        on_full: _,
        measure_after: _,
        measure_hours: _,
    } = old;
    [("[policy] drain_timeout", *drain_timeout != new.drain_timeout)]
}

const fn log_keys(old: &LogConfig) -> Keys<0> {
    let LogConfig { level: _, request_lines: _ } = old;
    []
}

#[cfg(test)]
mod tests {
    use crate::config::{Defaults, Source, parse};

    use super::*;

    fn of(text: &str) -> Config {
        parse(&[Source::settings("/f", text)], &Defaults::system()).unwrap()
    }

    #[test]
    fn what_is_read_at_the_start_alone_is_named_and_the_rest_is_not() {
        let old = of("[gpu]\nbackend = \"host\"\nbudget = \"1GiB\"");
        assert_eq!(needs_restart(&old, &old), <[String; 0]>::default());
        let applied = of("[gpu]\nbackend = \"host\"\nbudget = \"1GiB\"\nheadroom = \"64MiB\"\n\
                          [server]\nmax_wait = \"9s\"\n[policy]\non_stop = \"keep\"\n[log]\nlevel = \"debug\"\n\
                          [health]\ninterval = \"9s\"\n[startup]\ntimeout = \"9s\"");
        assert_ne!(applied, old);
        assert_eq!(needs_restart(&old, &applied), <[String; 0]>::default());
        let new = of(
            "[gpu]\nbackend = \"host\"\nbudget = \"2GiB\"\n[server]\nmax_connections = 9\n\
                      answer_timeout = \"9m\"\n[podman]\npull = false\n[policy]\ndrain_timeout = \"9s\"",
        );
        let named = [
            "[server] max_connections",
            "[server] answer_timeout",
            "[gpu] budget",
            "[podman] pull",
            "[policy] drain_timeout",
        ];
        assert_eq!(needs_restart(&old, &new), named);
    }
}
