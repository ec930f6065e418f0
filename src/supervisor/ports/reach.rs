//! The way to an engine over its Unix socket.
//!
//! Purpose: one function for everybody who connects to an engine. The last part of the socket's path is the engine's to choose: it may
//! put a link there, which connect(2) follows, to the daemon's own socket, to another engine's or to podman's. Owner: whoever connects
//! holds the stream. Invariants: what is connected to is a socket in the engine's own directory, the very one that was looked at, and
//! no link is followed to it. The directories above are the service user's, so nobody else puts links in their places.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use tokio::net::UnixStream;

use super::Endpoint;

impl Endpoint {
    /// Connects to an engine's Unix socket.
    ///
    /// # Errors
    /// As the kernel says: `NotFound` and `ConnectionRefused` while nobody listens, `WouldBlock` when the listener's queue is full.
    /// And if there is something else than a socket, a link for one.
    pub async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
        let held = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let what = match FileType::from_raw_mode(fstat(&held)?.st_mode) {
            FileType::Socket => {
                // Leads to what is held, whatever is at the path by now.
                let way = format!("/proc/self/fd/{}", held.as_raw_fd());
                return UnixStream::connect(way).await;
            }
            FileType::Symlink => "a link",
            FileType::Directory => "a directory",
            FileType::RegularFile => "a file",
            FileType::Fifo
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => "something else",
        };
        let text =
            format!("in the place of the engine's socket there is {what}, which is not followed");
        Err(io::Error::other(text))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use tokio::net::{UnixListener, UnixSocket};

    use super::*;

    /// A listener that has not got to those who have connected, and no room for another.
    pub(crate) async fn full(path: &Path) -> (UnixListener, Vec<UnixStream>) {
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => queued.push(stream),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                    return (listener, queued);
                }
            }
        }
    }

    #[tokio::test]
    async fn only_the_socket_itself_is_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let [own, other] = ["e.sock", "other"].map(|name| dir.path().join(name));
        let refused = |kind| move |error: io::Error| assert_eq!(error.kind(), kind, "{error}");
        refused(io::ErrorKind::NotFound)(Endpoint::connect_unix(&own).await.unwrap_err());

        let victim = UnixListener::bind(&other).unwrap();
        for target in [other.as_path(), Path::new("other"), Path::new("nowhere")] {
            symlink(target, &own).unwrap();
            let error = Endpoint::connect_unix(&own).await.unwrap_err();
            assert!(error.to_string().contains("a link"), "{error}");
            std::fs::remove_file(&own).unwrap();
        }
        std::fs::write(&own, "").unwrap();
        assert!(Endpoint::connect_unix(&own).await.unwrap_err().to_string().contains("a file"));
        std::fs::remove_file(&own).unwrap();
        let nobody = tokio::time::timeout(std::time::Duration::ZERO, victim.accept()).await;
        assert!(nobody.is_err(), "a link was followed");

        let listener = UnixListener::bind(&own).unwrap();
        let (made, came) = tokio::join!(Endpoint::connect_unix(&own), listener.accept());
        drop((made.unwrap(), came.unwrap(), listener));
        refused(io::ErrorKind::ConnectionRefused)(Endpoint::connect_unix(&own).await.unwrap_err());
    }

    #[tokio::test]
    async fn a_queue_that_is_full_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let _busy = full(&path).await;
        let error = Endpoint::connect_unix(&path).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
