//! Every metric: its name, kind, labels and meaning.
//!
//! Purpose: the one list, from which the page and `docs/metrics.md` are made, and which tests hold the dashboards and alerts in `contrib`
//! against. Owner: nobody; data. Invariants: base units (seconds, bytes, ratios from 0 to 1); counters end in `_total`; labels are
//! bounded by the configuration or by lists in this source.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the daemon's start.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of values in buckets.
    Histogram,
}

impl Kind {
    /// The word for it in the text formats.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// As it is scraped; of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// In the order in which their values are given.
    pub labels: &'static [&'static str],
    /// What it says, in one line.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $id: Metric =
                Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// All of them, in the order of the page.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    BUILD Gauge "hostler_build_info" ["version"] "1, with the daemon's version";
    PROBLEM Gauge "hostler_problem" ["code"] "1 for each problem that there is now, by the code that /ready shows";

    REQUESTS Counter "hostler_requests_total" ["model", "endpoint", "code"] "Requests that are over, by HTTP status, which is 200 for a stream that had signs of life, whatever came of it; code is none where the client left before there was one, and model is empty where no engine of a configured model was asked for";
    REQUEST_SECONDS Histogram "hostler_request_duration_seconds" ["model", "endpoint"] "From the request's head to the last byte of its answer, of requests for configured models";
    FIRST_BYTE Histogram "hostler_time_to_first_byte_seconds" ["model", "endpoint"] "From the request's head to the engine's first byte of the answer's body; signs of life are none";
    CHUNK_DELAY Histogram "hostler_inter_chunk_delay_seconds" ["model", "endpoint"] "Between one piece of a stream and the next, as they go out to the client; counted when the stream is over";
    QUEUE_WAIT Histogram "hostler_queue_wait_seconds" ["model", "endpoint"] "Wait of a request for its turn and for a ready engine, the load included";
    RESPONSE_BYTES Counter "hostler_response_bytes_total" ["model", "endpoint"] "Bytes of answers' bodies that went out";
    ABORTED Counter "hostler_requests_aborted_total" ["model", "endpoint", "side"] "Requests whose answer did not go out whole, by the side that ended them: client, engine, or host, which is the daemon; streams that were refused after signs of life included";
    DENIED Counter "hostler_denied_total" ["model", "reason"] "Requests that Hostler refused itself, by error.code; what an engine did not answer well is not among them, nor what monitoring asks";
    KEY_REQUESTS Counter "hostler_key_requests_total" ["key", "model"] "Requests for configured models that are over, by the name of the key that came with them; those without a key are not counted here";
    KEY_SECONDS Counter "hostler_key_engine_seconds_total" ["key", "model"] "Time of these requests without their wait for a turn and a ready engine";
    OPEN Gauge "hostler_requests_open" [] "Requests at the front door now: those that wait, run, or are being answered";
    IN_FLIGHT Gauge "hostler_requests_in_flight" ["model"] "Requests that an engine works on now";
    QUEUE_LENGTH Gauge "hostler_queue_length" ["model"] "Requests that wait now: for the model to be ready, or for one of its turns (max_concurrent)";
    CHUNKS Counter "hostler_stream_chunks_total" ["model"] "Server-sent events with data that the model's engines have streamed; most carry one token";

    PHASE Gauge "hostler_model_phase" ["model", "phase"] "1 for the phase that the model is in, 0 for the others";
    PINNED Gauge "hostler_model_pinned" ["model"] "1 while the model is never evicted or idled out, else 0";
    IDLE_SECONDS Gauge "hostler_model_idle_seconds" ["model"] "Time since a request was last given to the model or ended on it; absent before the first";
    LOADS Counter "hostler_loads_total" ["model", "result"] "Loads that have ended: ok, failed, or abandoned because nobody wanted them any more";
    LOAD_SECONDS Histogram "hostler_model_load_duration_seconds" ["model", "step"] "Time of the steps of a load: pull (the image), create (until the container runs), load (until the engine is ready), first_token (from when the new engine was first asked to the first byte of its answer), and total (from the order, a pull aside, to ready)";
    FAILURES Counter "hostler_model_failures_total" ["model", "code"] "Failed loads and deaths of engines, by the fault's code";
    RESTARTS Counter "hostler_restarts_total" ["model"] "Failures of the model after which it is started again on demand";
    BREAKER Gauge "hostler_breaker_state" ["model", "state"] "1 for the state of the model's circuit breaker, 0 for the others: closed, open, half_open";
    FAILURES_IN_A_ROW Gauge "hostler_model_failures_in_a_row" ["model"] "Failed loads and deaths since the model last served for a minute";
    CHECKS_FAILED Gauge "hostler_model_health_checks_failed" ["model"] "Failed health checks of the running engine, in a row";
    EVICTIONS Counter "hostler_evictions_total" ["model", "reason", "to"] "Times that a model was told to leave: why, and whether it was stopped or put to sleep";
    SLEEPS Counter "hostler_sleeps_total" ["model"] "Times that the model fell asleep and gave its memory back";
    SLEEP_FAILURES Counter "hostler_sleep_failures_total" ["model"] "Times that the model was stopped because it did not fall asleep, or kept too much";
    WAKES Counter "hostler_wakes_total" ["model"] "Times that the model woke and answered as before";
    WAKE_FAILURES Counter "hostler_wake_failures_total" ["model"] "Times that the model was stopped because it did not wake, its canary included";
    CANARY_FAILURES Counter "hostler_canary_failures_total" ["model"] "Of the failed wakes, those after which the canary's answer was another or missing";
    WAKE_SECONDS Histogram "hostler_model_wake_duration_seconds" ["model"] "From the order to wake to the canary's answer";

    MODEL_MEMORY Gauge "hostler_model_memory_bytes" ["model", "kind"] "Device memory of the model's instance: planned on each device (of one that sleeps, what it gets when it wakes, which is others' meanwhile), observed over all; absent while it has none or the driver does not tell";
    FOOTPRINT Gauge "hostler_footprint_bytes" ["model", "stat"] "What the model was measured to need on one device: median and peak; absent until it is measured";
    FOOTPRINT_CONFIDENCE Gauge "hostler_footprint_confidence" ["model"] "How far the measurement is trusted: 1 low, 2 medium, 3 high";
    FOOTPRINT_SAMPLES Gauge "hostler_footprint_samples" ["model"] "Samples that the measurement is of";
    SLEEP_RAM Gauge "hostler_sleep_host_ram_bytes" ["model"] "Host memory that is charged to the model's sleep now";

    EXTERNAL_UP Gauge "hostler_external_up" ["model"] "1 while a model that runs elsewhere passes its health check, 0 while it does not and its requests are refused; absent until that is known";

    GPU Gauge "hostler_gpu_info" ["gpu", "name"] "1 for each device, with its product's name";
    GPU_MEMORY Gauge "hostler_gpu_memory_bytes" ["gpu", "kind"] "The device's memory by the ledger: total, headroom, reserved (starting), confirmed (ready), releasing (stopped, release not seen), quarantined (not given back), foreign (others'), free (could be promised now); absent where it is not known";
    GPU_UTILISATION Gauge "hostler_gpu_utilization_ratio" ["gpu", "unit"] "Share of the driver's last sample period in which the compute units or the memory were busy; absent where the driver does not tell";
    GPU_TEMPERATURE Gauge "hostler_gpu_temperature_celsius" ["gpu"] "Temperature of the chip; absent where the driver does not tell";
    GPU_POWER Gauge "hostler_gpu_power_watts" ["gpu", "kind"] "Power that is drawn now, and the limit that is enforced; absent where the driver does not tell";

    PODMAN_SECONDS Histogram "hostler_podman_request_duration_seconds" ["op", "result"] "Requests to podman's API, by what was asked and whether it was done: ok or error";
    RECONCILES Counter "hostler_reconciles_total" ["source", "result"] "Times that what there is was compared with what is known: containers by podman's list, devices by the driver's reading";
    TRACE_SPANS Counter "hostler_trace_spans_total" ["result"] "Spans for the collector that [traces] names: sent, or lost because it did not take them in time; 0 where nothing is traced";

    CPU Counter "process_cpu_seconds_total" [] "Processor time of the daemon, in user and in kernel mode";
    RSS Gauge "process_resident_memory_bytes" [] "Memory of the daemon that is resident, shared pages included";
    VIRTUAL Gauge "process_virtual_memory_bytes" [] "Address space of the daemon";
    OPEN_FDS Gauge "process_open_fds" [] "File descriptors that the daemon has open";
    MAX_FDS Gauge "process_max_fds" [] "File descriptors that the daemon may have open";
    THREADS Gauge "process_threads" [] "Threads of the daemon";
    START_TIME Gauge "process_start_time_seconds" [] "When the daemon started, in seconds since 1970";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut names = BTreeSet::new();
        for metric in ALL {
            let Metric { name, kind, labels, help } = *metric;
            assert!(names.insert(name), "{name} is there twice");
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(plain), "{name}");
            assert!(name.starts_with("hostler_") || name.starts_with("process_"), "{name}");
            assert!(!help.ends_with('.') && !help.contains('\n'), "{name}");
            assert!(labels.len() == labels.iter().collect::<BTreeSet<_>>().len(), "{name}");
            assert!(!labels.contains(&"le"), "{name}");
        }
    }
}
