//! One file over an unreliable network.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Hub;
use super::meter::{Here, Meter};

/// How often a connection may break without a byte in between.
const ATTEMPTS: u32 = 5;
/// Between two attempts, times their number.
const PAUSE: Duration = Duration::from_millis(500);

/// A file to be.
pub(super) struct Target<'a> {
    /// From where.
    pub url: String,
    /// To where.
    pub path: PathBuf,
    /// How long it has to be.
    pub bytes: u64,
    /// What its content has to be, where the hub says.
    pub sha256: Option<&'a str>,
    /// On which disk.
    pub disk: &'a dyn Disk,
}

/// The disk that a file comes to. Tests have a slower one.
pub(super) trait Disk {
    /// The next piece that is to be checked.
    fn read(&self, file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize>;
    /// Writes a piece.
    fn write(&self, file: &mut File, bytes: &[u8]) -> std::io::Result<()>;
    /// Comes back when all is on the disk.
    fn sync(&self, file: &File) -> std::io::Result<()>;
}

/// The one that there is.
pub(super) struct Real;

impl Disk for Real {
    fn read(&self, file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
        file.read(buffer)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> std::io::Result<()> {
        file.sync_all()
    }
}

/// Why an attempt ended.
enum Broken {
    /// Another attempt may do better.
    Off(String),
    /// It will not.
    Final(String),
}

/// Where it is while it is not whole.
fn part(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.part", path.display()))
}

/// How many of its bytes are on the disk already.
pub(super) fn present(path: &Path) -> u64 {
    fs::metadata(path).or_else(|_| fs::metadata(part(path))).map_or(0, |data| data.len())
}

/// Fetches a file, unless it is there. What an earlier attempt, or run, left is gone on with.
pub(super) fn file(hub: &Hub, target: &Target<'_>, meter: &Meter) -> Result<(), String> {
    let io = |err: std::io::Error| format!("{}: {err}", target.path.display());
    if fs::metadata(&target.path).is_ok_and(|data| data.len() == target.bytes) {
        meter.add(target.bytes);
        return Ok(());
    }
    if let Some(parent) = target.path.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    let part = part(&target.path);
    let mut counted = fs::metadata(&part).map_or(0, |data| data.len());
    meter.add(counted);
    let mut attempt = 1;
    loop {
        let before = counted;
        let ended = piece(hub, target, &part, &mut counted, meter);
        match ended {
            Ok(()) => match check(target, &part, meter) {
                Ok(()) => break,
                Err(why) => {
                    // Nothing of it can be trusted.
                    fs::remove_file(&part).map_err(io)?;
                    meter.take(counted);
                    counted = 0;
                    if attempt >= 2 {
                        return Err(why);
                    }
                }
            },
            Err(Broken::Final(why)) => return Err(why),
            Err(Broken::Off(why)) if attempt >= ATTEMPTS => {
                return Err(format!("{why}; run the same command again to go on where it stopped"));
            }
            Err(Broken::Off(_)) => {}
        }
        attempt = if counted > before { 1 } else { attempt + 1 };
        std::thread::sleep(PAUSE * attempt);
    }
    fs::rename(&part, &target.path).map_err(io)
}

/// From where the file ends to the end, or to where the connection breaks.
fn piece(
    hub: &Hub,
    target: &Target<'_>,
    part: &PathBuf,
    counted: &mut u64,
    meter: &Meter,
) -> Result<(), Broken> {
    if *counted == target.bytes && target.bytes > 0 {
        return Ok(());
    }
    let io = |err: std::io::Error| Broken::Final(format!("{}: {err}", part.display()));
    let request = hub.get(&target.url).header("accept-encoding", "identity");
    let request =
        if *counted > 0 { request.header("range", format!("bytes={counted}-")) } else { request };
    let answer = request.call().map_err(|err| Broken::Off(format!("{}: {err}", target.url)))?;
    let status = answer.status().as_u16();
    let goes_on = match status {
        206 => {
            let range = answer.headers().get("content-range").and_then(|v| v.to_str().ok());
            range.is_some_and(|range| range.starts_with(&format!("bytes {counted}-")))
        }
        200 | 416 => false,
        500..=599 | 429 => return Err(Broken::Off(hub.refusal(status, &target.url))),
        _ => return Err(Broken::Final(hub.refusal(status, &target.url))),
    };
    if !goes_on {
        meter.take(*counted);
        *counted = 0;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(goes_on)
        .truncate(!goes_on)
        .open(part)
        .map_err(io)?;
    if status == 416 || status == 206 && !goes_on {
        return Err(Broken::Off(format!(
            "{}: the hub does not go on where it stopped",
            target.url
        )));
    }
    let mut body = answer.into_body().into_reader();
    let mut buffer = vec![0_u8; 256 << 10];
    loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(err) => return Err(Broken::Off(format!("{}: {err}", target.url))),
        };
        let piece = buffer.get(..count).unwrap_or_default();
        meter.here(Here::Writing, || target.disk.write(&mut file, piece)).map_err(io)?;
        *counted += count as u64;
        meter.add(count as u64);
        if *counted > target.bytes {
            let why = format!("{}: longer than the hub said", target.url);
            return Err(Broken::Final(why));
        }
    }
    if *counted < target.bytes {
        return Err(Broken::Off(format!("{}: the connection broke off", target.url)));
    }
    meter.here(Here::Writing, || target.disk.sync(&file)).map_err(io)
}

/// The digest.
fn check(target: &Target<'_>, part: &PathBuf, meter: &Meter) -> Result<(), String> {
    let Some(wanted) = target.sha256 else { return Ok(()) };
    let begun = Here::Checking { done: 0, of: target.bytes };
    let got = meter
        .here(begun, || digest(target, part, meter))
        .map_err(|err| format!("{}: {err}", part.display()))?;
    if got == wanted.to_ascii_lowercase() {
        return Ok(());
    }
    Err(format!("{}: its SHA-256 is {got}, and the hub says {wanted}", target.url))
}

fn digest(target: &Target<'_>, part: &PathBuf, meter: &Meter) -> std::io::Result<String> {
    let mut file = File::open(part)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    let mut done = 0;
    loop {
        let count = target.disk.read(&mut file, &mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        done += count as u64;
        meter.at_work(Here::Checking { done, of: target.bytes });
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
