//! The thread of requests.
//!
//! Purpose: clients' connections and the owner of all state run on one thread with a runtime of its own, so that a request changes
//! threads nowhere; adapters, checks and control run elsewhere and cannot keep it. Owner: the composition root. Invariant: nothing that
//! blocks or computes for long runs here.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The thread. It ends, with all that runs on it, when this is dropped.
#[derive(Debug)]
pub struct Plane {
    runtime: Handle,
    _stop: oneshot::Sender<()>,
}

impl Plane {
    /// Starts it.
    ///
    /// # Errors
    /// If the kernel gives no thread or no event queue.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("requests".into()).spawn(move || {
            // An error is the drop that is waited for.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _stop: stop })
    }

    /// Its runtime.
    #[must_use]
    pub const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs a task there.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_run_on_its_thread_until_it_is_dropped() {
        let plane = Plane::start().unwrap();
        let name = plane.spawn(async { thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap().as_deref(), Some("requests"));
        let endless = plane.spawn(std::future::pending::<()>());
        drop(plane);
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
