//! Traces, where this build has them and `[traces] otlp` asks for them.
//!
//! Purpose: the composition root is the same in both builds. Owner: [`super::run`]. Invariant: without the feature `otlp` nothing is
//! traced, and a configuration that asks for it was refused before ([`crate::config::load`]).

#[cfg(feature = "otlp")]
pub(super) use with::Tracing;
#[cfg(not(feature = "otlp"))]
pub(super) use without::Tracing;

#[cfg(feature = "otlp")]
mod with {
    use std::sync::Arc;

    use tokio::task::JoinHandle;
    use tokio_util::sync::CancellationToken;

    use crate::config::TracesConfig;
    use crate::observe::metrics::Metrics;
    use crate::observe::traces::Traces;
    use crate::proxy::port::Observer;
    use crate::supervisor::witness::Witness;

    /// Who makes spans, and the task that sends them.
    pub(in super::super) struct Tracing(Option<(Arc<Traces>, JoinHandle<()>)>, CancellationToken);

    impl Tracing {
        /// Begins where it is asked for.
        pub(in super::super) fn start(config: &TracesConfig, metrics: &Arc<Metrics>) -> Self {
            let stop = CancellationToken::new();
            let running = config.otlp.clone().map(|collector| {
                tracing::info!("spans of requests and loads go to {collector}");
                let (traces, exporter) = Traces::new(collector, config.sample, metrics.clone());
                (traces, tokio::spawn(exporter.run(stop.clone())))
            });
            Self(running, stop)
        }

        /// Sees requests beside another.
        pub(in super::super) fn observer<O: Observer>(&self, other: Arc<O>) -> Arc<dyn Observer> {
            match &self.0 {
                Some((traces, _)) => Arc::new((other, traces.clone())),
                None => other,
            }
        }

        /// Sees what happens to models beside another.
        pub(in super::super) fn witness<W: Witness>(&self, other: Arc<W>) -> Arc<dyn Witness> {
            match &self.0 {
                Some((traces, _)) => Arc::new((other, traces.clone())),
                None => other,
            }
        }

        /// Sends the last spans.
        pub(in super::super) async fn finish(self) {
            self.1.cancel();
            if let Some((_, sending)) = self.0 {
                // It bounds its own time; were it to panic, nothing else would follow from it.
                let _ = sending.await;
            }
        }
    }
}

#[cfg(not(feature = "otlp"))]
mod without {
    use std::sync::Arc;

    use crate::config::TracesConfig;
    use crate::observe::metrics::Metrics;
    use crate::proxy::port::Observer;
    use crate::supervisor::witness::Witness;

    /// Nobody traces.
    pub(in super::super) struct Tracing;

    impl Tracing {
        /// There is nothing to begin.
        pub(in super::super) const fn start(_: &TracesConfig, _: &Arc<Metrics>) -> Self {
            Self
        }

        /// The other alone.
        pub(in super::super) fn observer<O: Observer>(&self, other: Arc<O>) -> Arc<dyn Observer> {
            other
        }

        /// The other alone.
        pub(in super::super) fn witness<W: Witness>(&self, other: Arc<W>) -> Arc<dyn Witness> {
            other
        }

        /// There is nothing to end.
        pub(in super::super) async fn finish(self) {}
    }
}
