//! What the owner says in the journal.
//!
//! Purpose: one entry for each notice. Owner: the task, which alone calls it. Invariants: the text is whole without its fields; the fields
//! are for `journalctl HOSTLER_MODEL=…`; what an engine that failed wrote last is in the entry of its failure, so that whatever shows or
//! hides the one (a level, a kind, a request) does so with the other.

use super::effect::Notice;
use super::notice::{Line, Weight};
use super::story::Cause;

/// The entry of a notice, with for whom it happens; of a failure also what the engine said last, a line each.
pub(super) fn log(notice: &Notice, cause: &Cause) {
    let (request, job) = (cause.request.as_deref(), cause.job);
    let mut line = Line::from(notice);
    if let Notice::Failed { fault, .. } = notice {
        for said in &*fault.log_tail {
            line.text.push_str(&format!("\n{} | {said}", line.model));
        }
    }
    macro_rules! say {
        ($level:expr) => {
            tracing::event!(
                $level,
                kind = line.kind,
                model = %line.model,
                request_id = request,
                job,
                instance = line.instance.as_ref().map(tracing::field::display),
                gpu = line.gpu.as_deref(),
                reason = line.reason,
                took_ms = line.took_ms,
                retry_ms = line.retry_ms,
                "{}", line.text
            )
        };
    }
    match line.weight {
        Weight::Info => say!(tracing::Level::INFO),
        Weight::Warning => say!(tracing::Level::WARN),
        Weight::Error => say!(tracing::Level::ERROR),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::filter::LevelFilter;

    use super::*;
    use crate::types::{Fault, FaultCode, Generation, InstanceId};

    /// What is written.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Paper {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_shows_a_failure_shows_what_the_engine_wrote_last() {
        let paper = Paper::default();
        let sink = paper.clone();
        let only_errors = tracing_subscriber::fmt()
            .json()
            .with_max_level(LevelFilter::ERROR)
            .with_writer(move || sink.clone())
            .finish();
        let instance = InstanceId::new("m".parse().unwrap(), Generation(1), 1);
        let wrote = ["ValueError: no room", "bye"].map(str::to_owned);
        let fault = Fault::new(FaultCode::EngineExited, "exit code 1").with_log(wrote.to_vec());
        let notice = Notice::Failed { instance, fault, retry_ms: 1000 };
        tracing::subscriber::with_default(only_errors, || log(&notice, &Cause::default()));
        let entries = paper.0.lock().unwrap();
        let entry: serde_json::Value = serde_json::from_slice(&entries).unwrap();
        let fields = &entry["fields"];
        assert_eq!(
            (&fields["kind"], &fields["reason"]),
            (&"failed".into(), &"engine_exited".into())
        );
        let text = fields["message"].as_str().unwrap();
        assert!(text.starts_with("m: ") && text.contains("exit code 1"), "{text}");
        assert!(text.ends_with("\nm | ValueError: no room\nm | bye"), "{text}");
    }
}
