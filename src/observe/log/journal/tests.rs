//! What the journal would get, read back as its protocol is described.

use std::io::Read as _;
use std::sync::Mutex;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tracing_subscriber::layer::SubscriberExt;

use super::*;

type Fields = Vec<(String, String)>;

/// Reads an entry as the protocol's description has it.
fn fields(mut bytes: &[u8]) -> Fields {
    let mut all = vec![];
    while !bytes.is_empty() {
        let end = bytes.iter().position(|b| *b == b'\n').unwrap();
        let name = std::str::from_utf8(&bytes[..end]).unwrap().to_owned();
        let (length, rest) = bytes[end + 1..].split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        all.push((name, std::str::from_utf8(&rest[..length]).unwrap().to_owned()));
        assert_eq!(rest[length], b'\n');
        bytes = &rest[length + 1..];
    }
    all
}

/// What would be said.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Fields>>>);

impl<S: Subscriber> Layer<S> for Kept {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut desk = Desk::default();
        for _ in 0..2 {
            write(event, &mut desk);
        }
        self.0.lock().unwrap().push(fields(&desk.bytes));
    }
}

fn kept(say: impl FnOnce()) -> Vec<Fields> {
    let kept = Kept::default();
    let subscriber = tracing_subscriber::registry().with(kept.clone());
    tracing::subscriber::with_default(subscriber, say);
    let kept = kept.0.lock().unwrap();
    kept.clone()
}

#[test]
fn fields_are_the_journals_and_what_is_in_the_catalogue_has_its_id() {
    let entries = kept(|| {
        let none: Option<&str> = None;
        tracing::info!(kind = "ready", model = %"a/b", took_ms = 7, request_id = none, "{} is\nup", "m");
        tracing::warn!(log.target = "x", aborted = true);
    });
    let of = |at: usize, name: &str| {
        let mut with = entries[at].iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let first = with.next();
        assert_eq!(with.next(), None, "{name} is there twice");
        first
    };
    assert_eq!(of(0, "MESSAGE"), Some("m is\nup"));
    assert_eq!(of(0, "PRIORITY"), Some("6"));
    assert_eq!(of(0, "HOSTLER_MODEL"), Some("a/b"));
    assert_eq!(of(0, "HOSTLER_TOOK_MS"), Some("7"));
    assert_eq!(of(0, "HOSTLER_REQUEST_ID"), None);
    assert_eq!(of(0, "MESSAGE_ID"), catalog::of("ready").map(|m| m.id));
    assert!(of(0, "MESSAGE_ID").is_some() && of(0, "CODE_LINE").is_some());
    assert_eq!(of(1, "HOSTLER_LOG_TARGET"), Some("x"));
    assert_eq!(of(1, "HOSTLER_ABORTED"), Some("true"));
    assert_eq!(of(1, "PRIORITY"), Some("4"));
    assert_eq!(of(1, "MESSAGE"), Some(""));
}

#[test]
fn lines_wait_for_a_full_socket_and_come_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let journal = UnixDatagram::bind(&path).unwrap();
    let mut full = UnixDatagram::unbound().unwrap();
    full.connect(&path).unwrap();
    full.set_nonblocking(true).unwrap();
    let held = std::iter::from_fn(|| full.send(b"full").ok()).count();
    assert!(held > 0);
    full = UnixDatagram::unbound().unwrap();
    let lines = Lines::start(Socket::new(&path)).unwrap();
    for n in 0..2000 {
        lines.say(n.to_string().as_bytes(), Level::WARN);
    }
    assert!(!lines.flush(Duration::ZERO), "nobody reads yet");
    let mut space = [0; 64];
    let mut next = || {
        let got = journal.recv(&mut space).unwrap();
        String::from_utf8(space[..got].to_vec()).unwrap()
    };
    for _ in 0..held {
        assert_eq!(next(), "full");
    }
    for n in 0..2000 {
        assert_eq!(next(), n.to_string());
    }
    assert!(lines.flush(Duration::from_secs(3600)));
    drop(full);
}

#[test]
fn long_lines_go_as_sealed_files_and_a_new_journal_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let journal = UnixDatagram::bind(&path).unwrap();
    let lines = Lines::start(Socket::new(&path)).unwrap();
    lines.say(b"short", Level::INFO);
    let long = vec![b'y'; 1 << 20];
    lines.say(&long, Level::INFO);
    lines.say(b"after", Level::WARN);
    let mut space = [0; 64];
    let got = journal.recv(&mut space).unwrap();
    assert_eq!(&space[..got], b"short");
    let mut fds = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut fds);
    let got = recvmsg(&journal, &mut [], &mut control, RecvFlags::empty()).unwrap();
    assert_eq!(got.bytes, 0);
    let Some(RecvAncillaryMessage::ScmRights(mut files)) = control.drain().next() else {
        panic!("no file came");
    };
    let file = files.next().unwrap();
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW));
    let mut file = std::fs::File::from(file);
    std::io::Seek::rewind(&mut file).unwrap();
    let mut text = vec![];
    file.read_to_end(&mut text).unwrap();
    assert_eq!(text, long);
    let got = journal.recv(&mut space).unwrap();
    assert_eq!(&space[..got], b"after");

    drop(journal);
    std::fs::remove_file(&path).unwrap();
    let mut socket = Socket::new(&path);
    let mut nobody = Batch::default();
    for line in ["x", "y"] {
        nobody.push(line.as_bytes());
    }
    assert_eq!(socket.put(&nobody), 2, "all are lost, and told to be");
    let journal = UnixDatagram::bind(&path).unwrap();
    lines.say(b"again", Level::WARN);
    let got = journal.recv(&mut space).unwrap();
    assert_eq!(&space[..got], b"again");
    assert!(lines.flush(Duration::from_secs(3600)));
}
