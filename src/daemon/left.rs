//! Directories of engines that nobody could remove.
//!
//! Purpose: the podman adapter finds them and knows nobody to tell; problems are shown by the supervisor. Owner: the composition root.
//! Invariants: the problem lasts for as long as one of them is there, whoever removes it; a restart forgets them, as it does not know
//! who made what it finds.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use crate::adapters::podman::Left;
use crate::supervisor::handle::Handle;

/// The problem's code.
const CODE: &str = "sockets_left";
/// An administrator who removes one tells nobody.
const LOOK: Duration = Duration::from_secs(30);

/// Shows them as a problem.
pub async fn tell(handle: Handle, mut left: watch::Receiver<Left>) {
    loop {
        let known = left.borrow_and_update().clone();
        let message = message(&known).await;
        let over = message.is_none();
        handle.problem(CODE, message);
        let news = left.changed();
        let news = if over { Ok(news.await) } else { tokio::time::timeout(LOOK, news).await };
        if let Ok(Err(_)) = news {
            return;
        }
    }
}

/// `None`: none is there any more.
async fn message(left: &Left) -> Option<String> {
    let mut there = Vec::new();
    for (dir, why) in left {
        if is_there(dir).await {
            there.push((dir.display(), why));
        }
    }
    let (dir, why) = there.first()?;
    let more = match there.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more beside it"),
    };
    Some(format!(
        "{dir}{more}: what an engine left there could not be removed ({why}), and takes room that all engines' sockets share; as the service user: \
         \"podman unshare rm -rf {dir}\""
    ))
}

async fn is_there(dir: &Path) -> bool {
    tokio::fs::try_exists(dir).await.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_left_is_told_until_it_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| root.path().join(name));
        let known: Left = [(a.clone(), "no".to_owned()), (b.clone(), "nor this".to_owned())].into();
        assert_eq!(message(&known).await, None);
        std::fs::create_dir(&b).unwrap();
        let one = message(&known).await.unwrap();
        assert!(one.starts_with(&format!("{}: what", b.display())), "{one}");
        assert!(one.contains("(nor this)") && one.contains("rm -rf"), "{one}");
        std::fs::create_dir(&a).unwrap();
        let both = message(&known).await.unwrap();
        assert!(both.starts_with(&format!("{}, and 1 more", a.display())), "{both}");
        std::fs::remove_dir(&b).unwrap();
        std::fs::remove_dir(&a).unwrap();
        assert_eq!(message(&known).await, None);
    }
}
