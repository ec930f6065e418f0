//! How long podman takes, for whoever counts.
//!
//! Purpose: each kind of request has a word, and each request that is over is told. Owner: [`super::api::Api`]. Invariants: a request whose
//! future is dropped is told too, as one that was not answered; that something is not there is an answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use super::error::{Cause, PodmanError};
use crate::supervisor::ports::{Call, Calls};

/// Who counts; nobody by default.
#[derive(Clone, Default)]
pub struct Ear(pub Option<Arc<dyn Calls>>);

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Ear(somebody)" } else { "Ear(nobody)" })
    }
}

/// One request under way; told when it is dropped.
struct Told<'a> {
    calls: &'a dyn Calls,
    op: &'static str,
    ok: bool,
    since: Instant,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.calls.over(Call { op: self.op, ok: self.ok }, self.since.elapsed());
    }
}

impl Ear {
    /// Makes a request and tells of it.
    ///
    /// # Errors
    /// The request's own.
    pub async fn time<T>(
        &self,
        op: &'static str,
        call: impl Future<Output = Result<T, PodmanError>>,
    ) -> Result<T, PodmanError> {
        let Some(calls) = &self.0 else { return call.await };
        let mut told = Told { calls: &**calls, op, ok: false, since: Instant::now() };
        let result = call.await;
        told.ok = match &result {
            Ok(_) => true,
            Err(error) => {
                matches!(error.cause(), Some(Cause::NoSuchContainer | Cause::ImageUnknown))
            }
        };
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<(&'static str, bool)>>);

    impl Calls for Heard {
        fn over(&self, call: Call, _: Duration) {
            self.0.lock().unwrap().push((call.op, call.ok));
        }
    }

    #[tokio::test]
    async fn each_request_is_told_however_it_ends() {
        let heard = Arc::new(Heard::default());
        let ear = Ear(Some(heard.clone()));
        let refused = |text: &str| Err::<(), _>(PodmanError::refused("x", text));
        ear.time("start", async { Ok(()) }).await.unwrap();
        ear.time("start", async { refused("out of luck") }).await.unwrap_err();
        ear.time("inspect", async { refused("no such container") }).await.unwrap_err();
        let mut left = Box::pin(ear.time("pull", std::future::pending::<Result<(), _>>()));
        assert!(futures_util::poll!(&mut left).is_pending());
        drop(left);
        let heard = heard.0.lock().unwrap().clone();
        assert_eq!(heard, [("start", true), ("start", false), ("inspect", true), ("pull", false)]);
    }
}
