//! POSIX record locks, the one thing here that the kernel must be asked for directly.
//!
//! `F_SETLK`, not the open-file-description kind: only the POSIX kind tells a reader *who* holds a
//! lock, translated into the reader's own PID namespace. The price is that a process loses all its
//! locks on a file as soon as it closes *any* descriptor of it, so the table's file is never closed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Who holds a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody, or this very process: the kernel does not report one's own locks.
    Free,
    /// The process with this PID in our namespace; 0 when it is not visible from here.
    Process(u32),
}

fn flock(kind: libc::c_int, start: u64, length: u64) -> io::Result<libc::flock> {
    let offset = |n: u64| libc::off_t::try_from(n).map_err(io::Error::other);
    // SAFETY: `flock` is plain integers, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).map_err(io::Error::other)?;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = offset(start)?;
    lock.l_len = offset(length)?;
    Ok(lock)
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and `lock` is a `flock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes a write lock on a range; `false` when another process has it.
pub(crate) fn try_lock(file: &File, start: u64, length: u64) -> io::Result<bool> {
    match fcntl(file, libc::F_SETLK, &mut flock(libc::F_WRLCK, start, length)?) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Takes a write lock, trying every millisecond; `false` when `patience` ran out.
///
/// Never `F_SETLKW`: a holder that was stopped by a signal must not stop its readers too.
pub(crate) fn lock_within(
    file: &File,
    start: u64,
    length: u64,
    patience: Duration,
) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        if try_lock(file, start, length)? {
            return Ok(true);
        }
        if std::time::Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Gives a range back.
pub(crate) fn unlock(file: &File, start: u64, length: u64) -> io::Result<()> {
    fcntl(file, libc::F_SETLK, &mut flock(libc::F_UNLCK, start, length)?)
}

/// Asks who holds a range, without taking it; needs read access only.
pub(crate) fn holder(file: &File, start: u64, length: u64) -> io::Result<Holder> {
    let mut lock = flock(libc::F_WRLCK, start, length)?;
    fcntl(file, libc::F_GETLK, &mut lock)?;
    if libc::c_int::from(lock.l_type) == libc::F_UNLCK {
        return Ok(Holder::Free);
    }
    Ok(Holder::Process(u32::try_from(lock.l_pid).unwrap_or(0)))
}
