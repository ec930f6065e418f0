//! Lines in journald's own form.
//!
//! Purpose: each field of an event is a field of the journal, under `HOSTLER_`, and what has a place in the catalogue has its `MESSAGE_ID`.
//! Owner: [`super`]. Invariants: an event is written once, as the bytes that the journal takes; a line that is too long for a datagram
//! goes as a sealed file; a journal that was started anew is found again.
//!
//! Each line is a datagram of its own, although the protocol has a separator for entries behind each other: from version 253 on journald
//! takes the first of them that has a text and drops what follows, silently. So what is saved is the rest: many datagrams go with one
//! call, and a full socket is left alone for a while, because to sleep in it is to be woken for each line that journald takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{IoSlice, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    MMsgHdr, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmmsg, sendmsg,
};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::super::catalog;
use super::lines::{Batch, Lines, Sink};

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Datagrams in one system call.
const TOGETHER: usize = 256;
/// How long a full socket is left alone at first; journald empties it in a few of these.
const PAUSE: Duration = Duration::from_millis(1);
/// The longest, where it does not: it hangs.
const PAUSE_MAX: Duration = Duration::from_millis(64);

/// What a thread keeps, so that an event needs no memory of its own.
#[derive(Default)]
struct Desk {
    /// Of its last event.
    bytes: Vec<u8>,
    /// What all events of a place in the source begin with, by the address of its description, which lives for ever.
    heads: BTreeMap<usize, Vec<u8>>,
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
}

/// Says each event in the journal's form.
#[derive(Debug)]
pub(super) struct Journal(pub Arc<Lines>);

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let say = |desk: &mut Desk| {
            write(event, desk);
            self.0.say(&desk.bytes, *event.metadata().level());
        };
        DESK.with(|desk| match desk.try_borrow_mut() {
            Ok(mut desk) => say(&mut desk),
            // Something logs while it is being logged.
            Err(_) => say(&mut Desk::default()),
        });
    }
}

/// One event, as journald takes it.
fn write(event: &Event<'_>, desk: &mut Desk) {
    let Desk { bytes, heads } = desk;
    let place = std::ptr::from_ref(event.metadata()).addr();
    bytes.clear();
    bytes.extend_from_slice(heads.entry(place).or_insert_with(|| head(event.metadata())));
    let mut entry = Entry { bytes, text: false };
    event.record(&mut entry);
    if !entry.text {
        entry.put("MESSAGE", format_args!(""));
    }
}

/// What all events of a place have.
fn head(metadata: &Metadata<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut entry = Entry { bytes: &mut bytes, text: false };
    entry.put("PRIORITY", format_args!("{}", priority(*metadata.level())));
    entry.put("SYSLOG_IDENTIFIER", format_args!("hostlerd"));
    entry.put("TARGET", format_args!("{}", metadata.target()));
    if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
        entry.put("CODE_FILE", format_args!("{file}"));
        entry.put("CODE_LINE", format_args!("{line}"));
    }
    bytes
}

/// syslog's number. INFO is the journal's "info", not "notice".
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

struct Entry<'a> {
    bytes: &'a mut Vec<u8>,
    text: bool,
}

impl Entry<'_> {
    /// A field whose value may hold anything, line ends too: its length stands before it.
    fn put(&mut self, name: &str, value: fmt::Arguments<'_>) {
        self.bytes.extend_from_slice(name.as_bytes());
        self.value(value);
    }

    /// The value of the field whose name was just written.
    fn value(&mut self, value: fmt::Arguments<'_>) -> usize {
        self.bytes.extend_from_slice(b"\n\0\0\0\0\0\0\0\0");
        let start = self.bytes.len();
        // Nothing that is written into memory can fail.
        let _ = self.bytes.write_fmt(value);
        let length = (self.bytes.len() - start) as u64;
        if let Some(place) = self.bytes.get_mut(start - 8..start) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self.bytes.push(b'\n');
        start
    }

    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            self.text = true;
            return self.put("MESSAGE", value);
        }
        self.bytes.extend_from_slice(b"HOSTLER_");
        self.bytes.extend(field.name().bytes().map(journal_byte));
        let start = self.value(value);
        if field.name() == "kind" {
            let kind = self.bytes.get(start..self.bytes.len() - 1);
            let kind = kind.and_then(|kind| std::str::from_utf8(kind).ok());
            if let Some(message) = kind.and_then(catalog::of) {
                self.put("MESSAGE_ID", format_args!("{}", message.id));
            }
        }
    }
}

/// Letters, digits and underscores, as the journal has it.
fn journal_byte(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase() } else { b'_' }
}

impl Visit for Entry<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format_args!("{value:?}"));
    }
}

/// journald's socket.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    connected: Option<UnixDatagram>,
    pause: Duration,
}

impl Socket {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), connected: None, pause: PAUSE }
    }

    fn connect(&mut self) -> Option<&UnixDatagram> {
        if self.connected.is_none() {
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect(&self.path).ok()?;
            self.connected = Some(socket);
        }
        self.connected.as_ref()
    }

    /// Sends some of the lines, at least the first; says how many, or `None` where that one cannot be sent.
    fn some(&mut self, lines: &[&[u8]]) -> Option<usize> {
        // Twice: whoever listened may be gone, and another there.
        for _ in 0..2 {
            match together(self.connect()?, lines) {
                Ok(sent) => {
                    self.pause = PAUSE;
                    return Some(sent.max(1));
                }
                Err(Errno::INTR) => return Some(0),
                Err(Errno::AGAIN) => {
                    std::thread::sleep(self.pause);
                    self.pause = (self.pause * 2).min(PAUSE_MAX);
                    return Some(0);
                }
                Err(Errno::MSGSIZE) => return as_file(self.connect()?, lines.first()?).map(|()| 1),
                Err(_) => self.connected = None,
            }
        }
        None
    }
}

impl Sink for Socket {
    fn put(&mut self, batch: &Batch) -> u64 {
        let lines: Vec<&[u8]> = batch.lines().collect();
        let (mut at, mut lost) = (0, 0);
        while let Some(rest) = lines.get(at..).filter(|rest| !rest.is_empty()) {
            if self.connect().is_none() {
                // Nobody is there; the next batch asks again.
                return lost + rest.len() as u64;
            }
            at += self.some(&rest[..rest.len().min(TOGETHER)]).unwrap_or_else(|| {
                lost += 1;
                1
            });
        }
        lost
    }
}

fn together(socket: &UnixDatagram, lines: &[&[u8]]) -> rustix::io::Result<usize> {
    let slices: Vec<_> = lines.iter().map(|line| [IoSlice::new(line)]).collect();
    let mut controls: Vec<_> = lines.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let messages = slices.iter().zip(&mut controls).map(|(slice, none)| MMsgHdr::new(slice, none));
    sendmmsg(socket, &mut messages.collect::<Vec<_>>(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

/// A line that no datagram holds.
fn as_file(socket: &UnixDatagram, line: &[u8]) -> Option<()> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("hostler-log-line", flags).ok()?;
    let mut file = std::fs::File::from(file);
    file.write_all(line).ok()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals).ok()?;
    let fds = [std::os::fd::AsFd::as_fd(&file)];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[], &mut control, SendFlags::NOSIGNAL).ok().map(|_| ())
}

#[cfg(test)]
mod tests;
