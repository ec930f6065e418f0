//! A state file whose trouble is everybody's to see.
//!
//! Purpose: the journal is written by the podman adapter, which knows nobody to tell; problems are shown by the supervisor.
//! Owner: the composition root. Invariant: a write that is given up half-way counts as one that failed.

use tokio::sync::watch;

use crate::adapters::state_file::StateFile;
use crate::supervisor::handle::Handle;
use crate::supervisor::ports::{PortFuture, Shelf};

/// The problem's code.
const CODE: &str = "journal_unwritable";

/// The file, and how its last write went.
#[derive(Debug)]
pub struct Told {
    file: StateFile,
    last: watch::Sender<Option<String>>,
}

/// What is wrong with the file; `None`: nothing.
pub type Trouble = watch::Receiver<Option<String>>;

impl Told {
    /// Nothing is wrong so far.
    pub fn new(file: StateFile) -> (Self, Trouble) {
        let (last, trouble) = watch::channel(None);
        (Self { file, last }, trouble)
    }

    fn note(&self, failed: Option<String>) {
        self.last.send_if_modified(|old| {
            let new = *old != failed;
            *old = failed;
            new
        });
    }
}

/// Says that it took too long, unless told otherwise.
struct Unfinished<'a>(Option<&'a Told>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(told) = self.0 {
            told.note(Some("the disk takes too long".to_owned()));
        }
    }
}

impl Shelf for Told {
    fn save(&self, bytes: Vec<u8>) -> PortFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let mut unfinished = Unfinished(Some(self));
            let saved = Shelf::save(&self.file, bytes).await;
            unfinished.0 = None;
            self.note(saved.clone().err());
            saved
        })
    }
}

/// Shows the trouble as a problem for as long as it lasts.
pub async fn tell(handle: Handle, mut trouble: Trouble) {
    loop {
        let why = trouble.borrow_and_update().clone();
        let message = why.map(|why| {
            format!("the journal is not written, what is begun is known by the containers' labels alone, and a restart forgets what operators say about pins: {why}")
        });
        handle.problem(CODE, message);
        if trouble.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trouble_is_told_until_a_write_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state");
        let (told, trouble) = Told::new(StateFile::new(&place, "journal"));
        assert_eq!(*trouble.borrow(), None);
        told.save(b"1".to_vec()).await.unwrap_err();
        let why = trouble.borrow().clone().unwrap();
        assert!(why.contains("has to exist"), "{why}");
        std::fs::create_dir(&place).unwrap();
        told.save(b"1".to_vec()).await.unwrap();
        assert_eq!(*trouble.borrow(), None);
        drop(told.save(b"2".to_vec()));
        assert_eq!(*trouble.borrow(), None, "it was never begun");
    }
}
