//! What both kinds of test share.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hostler::supervisor::ports::{ContainerSpec, Progress, Sign};
use hostler::types::{
    Bytes, Generation, GpuId, ImageRef, InstanceId, Need, NeedSource, Placement, SpecHash,
    Transport,
};
use serde_json::Value;

/// A number that no other test of this or another process uses.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    (std::process::id() << 8) | (NEXT.fetch_add(1, Ordering::Relaxed) & 0xff)
}

/// A container that runs `script` in busybox's shell.
pub fn spec(image: &str, script: &str) -> ContainerSpec {
    ContainerSpec {
        instance: InstanceId::new("test/m".parse().unwrap(), Generation(1), unique()),
        spec_hash: SpecHash("0123456789abcdef01234567".into()),
        placement: Placement {
            gpus: vec![GpuId::host()],
            need: Need { bytes: Bytes::mib(64), source: NeedSource::Declared },
            budget: Bytes::mib(64),
            device_total: Bytes::gib(1),
        },
        image: ImageRef::parse(image).unwrap(),
        image_id: None,
        entrypoint: ["/bin/busybox", "sh", "-c"].map(String::from).to_vec(),
        command: vec![script.into()],
        env: BTreeMap::new(),
        key_variable: None,
        binds: vec![],
        weights: None,
        image_volumes: vec![],
        cdi_devices: vec![],
        transport: Transport::Unix,
        shm_size: Bytes::mib(16),
        stop_timeout: Duration::from_secs(2),
    }
}

/// A progress function and what it was told.
pub fn progress() -> (Progress, Arc<Mutex<Vec<Sign>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    (Arc::new(move |sign| sink.lock().unwrap().push(sign)), told)
}

/// A call past the adapter, to see what is really there: status and body.
pub fn raw(socket: &Path, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    write!(
        stream,
        "{method} /v4.0.0/libpod{path} HTTP/1.0\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let json = text.split_once("\r\n\r\n").map(|(_, b)| b).unwrap_or_default();
    (status, serde_json::from_str(json).unwrap_or_default())
}

/// Entries of a directory; empty when it is not there.
pub fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Polls until `done`, at most `limit`; panics with `what` otherwise.
pub async fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + limit;
    while !done() {
        assert!(std::time::Instant::now() < end, "{what} did not come true within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
