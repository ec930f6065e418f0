//! What the owner says in the journal.
//!
//! Purpose: one line for each notice. Owner: the task, which alone calls it. Invariant: the text is whole without its fields; the fields
//! are for `journalctl HOSTLER_MODEL=…`.

use super::effect::Notice;
use super::notice::{Line, Weight};
use super::story::Cause;

/// The line of a notice, with for whom it happens; after a failure also what the engine said last.
pub(super) fn log(notice: &Notice, cause: &Cause) {
    let (request, job) = (cause.request.as_deref(), cause.job);
    let line = Line::from(notice);
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
    if let Notice::Failed { instance, fault, .. } = notice {
        let model = &instance.model;
        for line in &fault.log_tail {
            tracing::info!(%model, %instance, request_id = request, job, "{model} | {line}");
        }
    }
}
