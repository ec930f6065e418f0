//! A stand-in for a model hub, over real sockets.
//!
//! Purpose: what `hostler add` has to live with from a hub: sizes and digests, ranges, tokens, connections that break in the
//! middle. Owner: the test. Invariants: files are those of a directory
//! `ORG/NAME/…`; the commit is [`COMMIT`]; one request a connection; all that was asked is kept for the test to look at.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

/// The one commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How it behaves.
#[derive(Clone, Debug, Default)]
pub struct Knobs {
    /// Who does not send it is turned away.
    pub token: Option<String>,
    /// The first answer with each file ends after so many bytes.
    pub cut: Option<usize>,
    /// The first answer with each file stops after so many bytes, and goes on when the test says so.
    pub hold: Option<usize>,
    /// Digests are those of other files.
    pub lie: bool,
    /// Ranges are ignored.
    pub no_ranges: bool,
}

/// One request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The path with its query.
    pub path: String,
    /// The range, if one was asked for.
    pub range: Option<String>,
}

/// A hub that serves until the process ends.
#[derive(Clone, Debug)]
pub struct Hub {
    dir: PathBuf,
    knobs: Knobs,
    asked: Arc<Mutex<Vec<Asked>>>,
    cut: Arc<Mutex<BTreeSet<PathBuf>>>,
    released: Arc<(Mutex<bool>, Condvar)>,
}

impl Hub {
    /// Serves a directory on an address; returns where it listens.
    pub fn start(dir: &Path, address: &str, knobs: Knobs) -> std::io::Result<(Self, SocketAddr)> {
        Self::serve_on(TcpListener::bind(address)?, dir, knobs)
    }

    /// Serves a directory on a socket, which may be of another network namespace than this process.
    pub fn serve_on(
        listener: TcpListener,
        dir: &Path,
        knobs: Knobs,
    ) -> std::io::Result<(Self, SocketAddr)> {
        let address = listener.local_addr()?;
        let (asked, cut, released) = Default::default();
        let hub = Self { dir: dir.to_owned(), knobs, asked, cut, released };
        let serving = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = serving.clone();
                std::thread::spawn(move || {
                    // A client that left is its own affair.
                    let _ = hub.serve(stream);
                });
            }
        });
        Ok((hub, address))
    }

    /// All that was asked until now.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers that were held back go on.
    pub fn release(&self) {
        let (released, changed) = &*self.released;
        *released.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }

    fn wait_released(&self) {
        let (released, changed) = &*self.released;
        let guard = released.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_while(guard, |released| !*released);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut range, mut token) = (None, None);
        for line in lines {
            let line = line?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.to_owned()),
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
        let asked = Asked { path: path.clone(), range: range.clone() };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        if self.knobs.token.is_some() && self.knobs.token != token {
            return answer(&mut stream, "401 Unauthorized", "", b"{\"error\":\"no\"}");
        }
        let bare = path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = bare.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["api", "models", org, name, "revision", _] => self.describe(&mut stream, org, name),
            [org, name, "resolve", COMMIT, rest @ ..] => {
                let file = self.dir.join(org).join(name).join(rest.join("/"));
                self.send(&mut stream, &file, range.as_deref())
            }
            _ => answer(&mut stream, "404 Not Found", "", b"{}"),
        }
    }

    fn describe(&self, stream: &mut TcpStream, org: &str, name: &str) -> std::io::Result<()> {
        let Ok(entries) = fs::read_dir(self.dir.join(org).join(name)) else {
            return answer(stream, "404 Not Found", "", b"{}");
        };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let bytes = fs::read(entry.path())?;
            let digest: &[u8] = if self.knobs.lie { b"another" } else { &bytes };
            let sha256: String =
                Sha256::digest(digest).iter().map(|byte| format!("{byte:02x}")).collect();
            let (file, size) = (entry.file_name(), bytes.len());
            files.push(format!(
                r#"{{"rfilename":{:?},"size":{size},"blobId":"b","lfs":{{"sha256":"{sha256}","size":{size},"pointerSize":1}}}}"#,
                file.to_string_lossy()
            ));
        }
        let text =
            format!(r#"{{"id":"{org}/{name}","sha":"{COMMIT}","siblings":[{}]}}"#, files.join(","));
        answer(stream, "200 OK", "content-type: application/json\r\n", text.as_bytes())
    }

    fn send(
        &self,
        stream: &mut TcpStream,
        file: &Path,
        range: Option<&str>,
    ) -> std::io::Result<()> {
        let Ok(bytes) = fs::read(file) else {
            return answer(stream, "404 Not Found", "", b"{}");
        };
        let from: Option<usize> = range
            .filter(|_| !self.knobs.no_ranges)
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let rest = match from {
            Some(from) if from >= bytes.len() => {
                return answer(stream, "416 Range Not Satisfiable", "", b"");
            }
            from => &bytes[from.unwrap_or(0)..],
        };
        let (status, extra) = match from {
            Some(from) => {
                let (last, all) = (bytes.len() - 1, bytes.len());
                ("206 Partial Content", format!("content-range: bytes {from}-{last}/{all}\r\n"))
            }
            None => ("200 OK", String::new()),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"x\"\r\nconnection: close\r\n{extra}\r\n",
            rest.len()
        )?;
        let first = self.cut.lock().unwrap_or_else(PoisonError::into_inner).insert(file.to_owned());
        let cut = self.knobs.cut.filter(|_| first).unwrap_or(rest.len()).min(rest.len());
        let (now, later) =
            rest[..cut].split_at(self.knobs.hold.filter(|_| first).unwrap_or(cut).min(cut));
        stream.write_all(now)?;
        if !later.is_empty() {
            self.wait_released();
            stream.write_all(later)?;
        }
        hang_up(stream)
    }
}

fn answer(stream: &mut TcpStream, status: &str, extra: &str, body: &[u8]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{extra}\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    hang_up(stream)
}

/// All that was written gets there before the connection ends.
fn hang_up(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut rest = [0_u8; 64];
    while stream.read(&mut rest)? > 0 {}
    Ok(())
}
