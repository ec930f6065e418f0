//! Lines in journald's own form.
//!
//! Purpose: each field of an event is a field of the journal, under `HOSTLER_`, and what has a place in the catalogue has its `MESSAGE_ID`.
//! Owner: [`super::log`]. Invariant: a line is sent once and never waited for again: a journal that takes nothing costs its line.

use std::fmt::{self, Write as _};

use libsystemd::logging::{Priority, journal_send};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::catalog;

/// Sends each event to the journal.
#[derive(Debug)]
pub(super) struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let priority = priority(*event.metadata().level());
        let text = std::mem::take(&mut line.text);
        // There is nobody who could be told.
        let _ = journal_send(priority, &text, line.fields(event).into_iter());
    }
}

/// INFO is the journal's "info", not "notice".
fn priority(level: Level) -> Priority {
    match level {
        Level::ERROR => Priority::Error,
        Level::WARN => Priority::Warning,
        Level::INFO => Priority::Info,
        _ => Priority::Debug,
    }
}

/// One event's text and fields.
#[derive(Default)]
struct Line {
    text: String,
    kind: Option<String>,
    fields: Vec<(String, String)>,
}

impl Line {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.text = value,
            name => {
                if name == "kind" {
                    self.kind = Some(value.clone());
                }
                self.fields.push((journal_name(name), value));
            }
        }
    }

    fn fields(self, event: &Event<'_>) -> Vec<(String, String)> {
        let metadata = event.metadata();
        let mut all = self.fields;
        let mut put = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
        put("SYSLOG_IDENTIFIER", "hostlerd");
        put("TARGET", metadata.target());
        if let Some(message) = self.kind.as_deref().and_then(catalog::of) {
            put("MESSAGE_ID", message.id);
        }
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            put("CODE_FILE", file);
            put("CODE_LINE", &line.to_string());
        }
        all
    }
}

/// Letters, digits and underscores, as the journal has it.
fn journal_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    "HOSTLER_".chars().chain(name.chars().map(plain)).collect()
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Nothing that is written into a text can fail.
        let _ = write!(text, "{value:?}");
        self.put(field, text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What would be sent.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<(String, String)>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut line = Line::default();
            event.record(&mut line);
            let mut kept = self.0.lock().unwrap();
            kept.push(("MESSAGE".into(), line.text.clone()));
            kept.extend(line.fields(event));
        }
    }

    #[test]
    fn fields_are_the_journals_and_what_is_in_the_catalogue_has_its_id() {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::registry().with(kept.clone());
        tracing::subscriber::with_default(subscriber, || {
            let none: Option<&str> = None;
            tracing::info!(kind = "ready", model = %"a/b", took_ms = 7, request_id = none, "{} is up", "m");
        });
        let kept = kept.0.lock().unwrap().clone();
        let of = |name: &str| kept.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(of("MESSAGE"), Some("m is up"));
        assert_eq!(of("HOSTLER_MODEL"), Some("a/b"));
        assert_eq!(of("HOSTLER_TOOK_MS"), Some("7"));
        assert_eq!(of("HOSTLER_REQUEST_ID"), None);
        assert_eq!(of("MESSAGE_ID"), catalog::of("ready").map(|m| m.id));
        assert!(of("MESSAGE_ID").is_some() && of("CODE_LINE").is_some());
        assert_eq!(journal_name("log.target"), "HOSTLER_LOG_TARGET");
    }
}
