//! The page in the making.
//!
//! Purpose: from a [`Metric`] and its samples to the library's encoder. Owner: [`super::Metrics`], for the length of one scrape. Invariant: a
//! sample has as many labels as its metric; a histogram of which nothing was ever counted is left out, its help is not.

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::count::Read;
use super::names::{Kind, Metric};

/// What a sample says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Of a counter.
    Count(u64),
    /// Of a counter that is no whole number, or of a gauge.
    Level(f64),
    /// Of a histogram.
    Histogram(Read),
}

/// Label values, in the order of the metric's labels.
pub(super) type Labels = Vec<String>;

/// The page.
pub(super) struct Page<'a>(DescriptorEncoder<'a>);

impl<'a> Page<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// A metric with all its samples.
    pub(super) fn family(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels, Value)>,
    ) -> std::fmt::Result {
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        // The encoder adds it again.
        let name = match metric.kind {
            Kind::Counter => metric.name.trim_end_matches("_total"),
            Kind::Gauge | Kind::Histogram => metric.name,
        };
        let mut family = self.0.encode_descriptor(name, metric.help, None, kind)?;
        for (values, value) in samples {
            debug_assert_eq!(values.len(), metric.labels.len(), "{}", metric.name);
            let labels: Vec<(&str, &str)> =
                metric.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            if labels.is_empty() {
                sample(&mut family, metric.kind, &value)?;
            } else {
                sample(&mut family.encode_family(&labels)?, metric.kind, &value)?;
            }
        }
        Ok(())
    }
}

fn sample(encoder: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> std::fmt::Result {
    match (value, kind) {
        (Value::Count(n), Kind::Counter) => encoder.encode_counter::<NoLabelSet, _, u64>(n, None),
        (Value::Level(n), Kind::Counter) => encoder.encode_counter::<NoLabelSet, _, f64>(n, None),
        (Value::Count(n), Kind::Gauge | Kind::Histogram) => encoder.encode_gauge(&(*n as f64)),
        (Value::Level(n), Kind::Gauge | Kind::Histogram) => encoder.encode_gauge(n),
        (Value::Histogram(read), _) if read.count == 0 => Ok(()),
        (Value::Histogram(read), _) => {
            encoder.encode_histogram::<NoLabelSet>(read.sum, read.count, &read.buckets, None)
        }
    }
}
