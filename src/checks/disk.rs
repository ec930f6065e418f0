//! Whether images find room: in podman's storage, and where it puts first what it fetches.
//!
//! Invariant: what counts is what podman's user may write; where only podman's own count is to be had, it says what is in it.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::Outcome;
use crate::adapters::disk;
use crate::supervisor::ports::PodmanHost;
use crate::types::Bytes;

/// An engine's image of a common size does not fit into less.
const DISK_WARN: Bytes = Bytes::gib(30);
/// podman itself gets into trouble with less.
const DISK_FAIL: Bytes = Bytes::gib(1);

/// A local disk answers at once; one over a network that does not has hung.
const WITHIN: Duration = Duration::from_secs(5);

/// The worse of both places. One that is as good as the other is not told of: most often they are one file system.
pub(super) async fn judge(podman: &PodmanHost) -> (Outcome, String) {
    let (outcome, measured) = of_storage(podman).await;
    let Some(copies) = &podman.copies else { return (outcome, measured) };
    match of_copies(copies).await {
        (worse, why) if worse > outcome => (worse, format!("{measured}; {why}")),
        _ => (outcome, measured),
    }
}

/// Where podman puts first what it fetches or loads.
async fn of_copies(dir: &Path) -> (Outcome, String) {
    let place = format!("{}, where podman puts first what it fetches", dir.display());
    match disk::look("room", dir, WITHIN, room).await {
        Ok(Ok(Some(Room { total, free }))) => {
            by_free(free, format!("{free} of {total} free at {place}"))
        }
        Ok(Ok(None)) => (Outcome::Pass, String::new()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            let fix = "make it, for the service user by /usr/lib/hostler/postinst.sh";
            (Outcome::Fail, format!("there is no {place}: it fetches nothing then; {fix}"))
        }
        Ok(Err(error)) => (Outcome::Warn, format!("{place}, cannot be looked at: {error}")),
        Err(late) => (Outcome::Warn, format!("{place}, cannot be looked at: {late}")),
    }
}

/// Where podman's storage can be looked at, by what its user may write there; else by podman's own count.
async fn of_storage(podman: &PodmanHost) -> (Outcome, String) {
    let place = podman.storage.as_deref().unwrap_or(Path::new("its storage")).display();
    let seen = match &podman.storage {
        Some(storage) => Some(look(storage).await),
        None => None,
    };
    if let Some(Ok(Room { total, free })) = seen {
        return by_free(free, format!("{free} of {total} free at {place}"));
    }
    let (Some(total), Some(used)) = (podman.storage_total, podman.storage_used) else {
        return (Outcome::Warn, "podman does not say how much there is".to_owned());
    };
    let why = seen.and_then(Result::err).map(|error| format!(" ({error})"));
    let free = total.saturating_sub(used);
    let measured = format!(
        "{free} of {total} free at {place} by podman's count, with what the file system keeps for root: it cannot be looked at from here{}",
        why.unwrap_or_default()
    );
    let (outcome, measured) = by_free(free, measured);
    // What could not be looked at is never a pass.
    (outcome.max(Outcome::Warn), measured)
}

async fn look(path: &Path) -> Result<Room, String> {
    let seen = disk::look("room", path, WITHIN, room).await.map_err(|late| late.to_string())?;
    let known = seen.map_err(|error| error.to_string())?;
    known.ok_or_else(|| "its file system does not say how large it is".to_owned())
}

/// What there is of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its size.
    pub total: Bytes,
    /// Free for whoever is not root: ext4 keeps 5 % for root unless it was told otherwise.
    pub free: Bytes,
}

/// The room on a path's file system, by statvfs(3); `None`: it does not say how large it is, as some do not, of FUSE above all. It blocks.
///
/// # Errors
/// As the kernel says.
pub fn room(path: &Path) -> io::Result<Option<Room>> {
    let disk = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(disk.f_frsize));
    let room = Room { total: bytes(disk.f_blocks), free: bytes(disk.f_bavail) };
    Ok((disk.f_blocks > 0).then_some(room))
}

fn by_free(free: Bytes, measured: String) -> (Outcome, String) {
    if free < DISK_FAIL {
        (Outcome::Fail, format!("{measured}: podman needs at least {DISK_FAIL}"))
    } else if free < DISK_WARN {
        (Outcome::Warn, format!("{measured}: less than {DISK_WARN}, an engine's image and weights"))
    } else {
        (Outcome::Pass, measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_podman_counts_is_judged_where_nothing_else_is_known() {
        let mut podman = PodmanHost::default();
        for (free, wanted) in
            [(0, Outcome::Fail), (1, Outcome::Warn), (29, Outcome::Warn), (30, Outcome::Warn)]
        {
            podman.storage_total = Some(Bytes::gib(100));
            podman.storage_used = Some(Bytes::gib(100 - free));
            let (outcome, text) = judge(&podman).await;
            assert_eq!(outcome, wanted, "{free}");
            assert!(text.contains("by podman's count, with what the file system keeps for root"));
        }
        let by_free = |gib| by_free(Bytes::gib(gib), String::new()).0;
        assert_eq!(
            [0, 1, 29, 30].map(by_free),
            [Outcome::Fail, Outcome::Warn, Outcome::Warn, Outcome::Pass]
        );
    }

    #[tokio::test]
    async fn where_images_are_put_first_is_judged_too() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        let mut podman = PodmanHost {
            storage: Some(dir.path().to_owned()),
            copies: Some(none.clone()),
            ..PodmanHost::default()
        };
        let (outcome, text) = judge(&podman).await;
        assert_eq!(outcome, Outcome::Fail);
        assert!(text.contains(&format!("there is no {}", none.display())), "{text}");
        assert!(text.contains("postinst.sh"), "{text}");
        // One and the same is said once.
        podman.copies = Some(dir.path().to_owned());
        let text = judge(&podman).await.1;
        assert!(!text.contains("puts first"), "{text}");
        // And where it is the smaller one that is full, it is that.
        podman.copies = Some("/proc/self".into());
        assert!(matches!(room(Path::new("/proc/self")), Ok(None)), "has no size to judge");
        assert_eq!(judge(&podman).await.1, text);
    }

    /// podman counts what is left for root alone as free, at which its user's pulls fail.
    #[tokio::test]
    async fn the_disk_is_judged_by_what_the_service_user_may_write() {
        let dir = tempfile::tempdir().unwrap();
        let Room { total, free } = room(dir.path()).unwrap().unwrap();
        assert!(Bytes::ZERO < total && free <= total, "{free} of {total}");
        // All used by podman's count, and nothing of it is said.
        let mut podman = PodmanHost {
            storage: Some(dir.path().to_owned()),
            storage_total: Some(Bytes::gib(100)),
            storage_used: Some(Bytes::gib(100)),
            ..PodmanHost::default()
        };
        let text = judge(&podman).await.1;
        let place = dir.path().display().to_string();
        assert!(text.contains(&format!("of {total} free at {place}")), "{text}");
        assert!(!text.contains("podman's count"), "{text}");
        podman.storage = Some(dir.path().join("none"));
        let (outcome, text) = judge(&podman).await;
        assert_eq!(outcome, Outcome::Fail);
        assert!(text.contains("by podman's count") && text.contains("(No such file"), "{text}");
    }
}
