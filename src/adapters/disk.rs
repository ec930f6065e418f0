//! Looks at paths, and other work that blocks, which may never answer.
//!
//! Purpose: a network file system whose server is gone holds whoever asks it in the kernel, for as long as it likes; such a look
//! costs its caller no more than a deadline. Owner: whoever looks at files of models, which lie where the administrator has them. It
//! is the one thing that adapters share. Invariants: no thread of the runtime waits for a disk; a path that hangs holds one thread for each
//! thing that is asked of it, however often.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;

/// Whose turn it is to look at a path for something. Threads are the whole process's, so this is, too.
static TURNS: Mutex<BTreeMap<(&str, PathBuf), Weak<Semaphore>>> = Mutex::new(BTreeMap::new());

/// A path that did not answer in its time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} does not answer within {} s; is the file system dead that it is on, as one over a network is whose server is gone?", path.display(), within.as_secs())]
pub struct Late {
    path: PathBuf,
    within: Duration,
}

/// What `read` says of `path`, on a thread for what blocks. `what`: a look for something else waits for none of these, for one may read
/// much and another next to nothing.
///
/// # Errors
/// Not `within` that time: the look goes on by itself, and whoever asks for the same of the same path waits for it first.
pub async fn look<T: Send + 'static>(
    what: &'static str,
    path: &Path,
    within: Duration,
    read: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Late> {
    let owned = path.to_owned();
    let answer = blocking(turn(what, path), within, move || read(&owned)).await;
    answer.ok_or_else(|| Late { path: path.to_owned(), within })
}

/// Does what may block on a thread for that, when there is room; `None`: not within the time.
pub async fn blocking<T: Send + 'static>(
    room: Arc<Semaphore>,
    within: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let work = async move {
        let permit = room.acquire_owned().await.ok()?;
        let task = tokio::task::spawn_blocking(move || {
            let answer = work();
            // Held by the work and not by whoever asked for it: what hangs keeps its place.
            drop(permit);
            answer
        });
        task.await.ok()
    };
    tokio::time::timeout(within, work).await.ok().flatten()
}

fn turn(what: &'static str, path: &Path) -> Arc<Semaphore> {
    let place = (what, path.to_owned());
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    turns.retain(|_, turn| turn.strong_count() > 0);
    if let Some(turn) = turns.get(&place).and_then(Weak::upgrade) {
        return turn;
    }
    let turn = Arc::new(Semaphore::new(1));
    turns.insert(place, Arc::downgrade(&turn));
    turn
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A pipe that nobody writes into holds its reader in the kernel, as a dead mount does.
    #[tokio::test]
    async fn what_hangs_holds_one_thread_and_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let [pipe, other] = ["pipe", "other"].map(|name| dir.path().join(name));
        std::fs::write(&other, "here").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        let read = |path: &Path| {
            BEGUN.fetch_add(1, Ordering::Relaxed);
            std::fs::read_to_string(path).unwrap()
        };
        let short = Duration::from_millis(50);
        for _ in 0..3 {
            let late = look("text", &pipe, short, read).await.unwrap_err();
            assert!(late.to_string().contains("does not answer within"), "{late}");
        }
        assert!(BEGUN.load(Ordering::Relaxed) <= 1, "each look held a thread of its own");
        // Something else is asked of it meanwhile.
        let meta = look("kind", &pipe, LONG, |path| std::fs::metadata(path).unwrap().is_file());
        assert!(!meta.await.unwrap());
        assert_eq!(look("text", &other, LONG, read).await.unwrap(), "here");
        // It comes back, and is asked again.
        std::fs::write(&pipe, "first").unwrap();
        let again = look("text", &pipe, LONG, read);
        let (again, ()) = tokio::join!(again, async {
            let pipe = pipe.clone();
            // Not into the hands of the first look, nor of the other file's.
            while BEGUN.load(Ordering::Relaxed) < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::task::spawn_blocking(move || std::fs::write(pipe, "second"))
                .await
                .unwrap()
                .unwrap();
        });
        assert_eq!(again.unwrap(), "second");
    }
}
