//! Raw requests, hundreds of them, from a table: each is answered as it should be, and no byte of one is taken for another.

use hostler::proxy::{Limits, Rules};
use hostler::types::Bytes;
use std::time::Duration;

use crate::engine::{Seen, Step, send};
use crate::house::{House, Setup, house, rules};

/// The table.
const TABLE: &str = include_str!("raw/cases.txt");
/// Follows each case; it is answered only where the connection goes on.
const HIDDEN: &str = "GET /v1/models/hidden HTTP/1.1\r\nHost: a\r\n\r\n";

/// One line of the table.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub raw: Vec<u8>,
    expected: Vec<Outcome>,
}

/// What becomes of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    statuses: Vec<u16>,
    keep: bool,
    engine: usize,
}

impl Outcome {
    fn parse(text: &str) -> Self {
        let mut words = text.split_ascii_whitespace();
        let statuses = words.next().unwrap();
        let statuses = statuses.split('+').filter(|s| *s != "-").map(|s| s.parse().unwrap());
        let statuses = statuses.collect();
        let keep = match words.next().unwrap() {
            "keep" => true,
            "close" => false,
            other => panic!("{other:?}"),
        };
        let engine =
            words.next().map_or(0, |w| w.strip_prefix("engine=").unwrap().parse().unwrap());
        Self { statuses, keep, engine }
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let lines = TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    let case = |line: &'static str| {
        let mut fields = line.splitn(3, '\t');
        let expected = fields.next().unwrap().split(" or ").map(Outcome::parse).collect();
        let name = fields.next().unwrap();
        let raw = unescape(fields.next().unwrap());
        Case { name, raw, expected }
    };
    lines.map(case).collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let (code, after) = rest[at + 1..].split_at(1);
        rest = after;
        match code {
            "r" => out.push(b'\r'),
            "n" => out.push(b'\n'),
            "t" => out.push(b'\t'),
            "\\" => out.push(b'\\'),
            "x" => {
                out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                rest = &rest[2..];
            }
            "*" => {
                let (count, after) = rest.split_once('(').unwrap();
                let (what, after) = after.split_once(')').unwrap();
                out.extend(unescape(what).repeat(count.parse().unwrap()));
                rest = after;
            }
            other => panic!("an unknown escape {other:?} in {text}"),
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// So short that a case which waits for more fails, and says so.
pub fn limits() -> Limits {
    Limits {
        header_timeout: Duration::from_secs(4),
        body_progress_timeout: Duration::from_secs(4),
        idle_timeout: Duration::from_secs(4),
        flow_pace: Duration::from_secs(60),
        max_body: Bytes::mib(1),
        ..Limits::default()
    }
}

/// A house that goes by the names which cases give it, or all else in them would be refused for its name.
pub fn setup() -> Setup {
    let hosts = ["a", "localhost", "127.0.0.1", "[::1]", "a.b-c.example.", "gpu_1"];
    let rules = Rules { hosts: hosts.map(Into::into).into(), ..rules() };
    Setup { limits: limits(), rules, ..Setup::default() }
}

/// Sends a case and reads until the end of the connection, or of the answer to what follows.
pub async fn answer(house: &House, raw: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut client = house.client().await;
    let all = [raw, HIDDEN.as_bytes()].concat();
    let (mut read, mut write) = client.io.split();
    let mut got = Vec::new();
    let send = async {
        // The server may close before it has read all.
        let _ = write.write_all(&all).await;
        std::future::pending::<()>().await;
    };
    let receive = async {
        while !contains(&got, b"\"param\":\"model\",\"code\":\"model_not_found\"")
            || !contains(&got, b"hidden")
        {
            if !matches!(read.read_buf(&mut got).await, Ok(n) if n > 0) {
                return;
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = crate::wire::soon("the answer to a case", receive) => {}
    }
    drop(client);
    got
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|w| w == text)
}

/// The statuses of answers one after the other, without interim ones; the last is that of what follows if `true`.
fn statuses(mut raw: &[u8], head_only: bool) -> (Vec<u16>, bool) {
    let (mut statuses, mut keep) = (Vec::new(), false);
    while !raw.is_empty() {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .split_once("content-length: ")
            .map_or(0, |(_, rest)| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
        let length = if head_only && statuses.is_empty() { 0 } else { length };
        let body = &raw[end..(end + length).min(raw.len())];
        if contains(body, b"hidden") {
            keep = true;
        } else if status >= 200 {
            statuses.push(status);
        }
        raw = &raw[(end + length).min(raw.len())..];
    }
    (statuses, keep)
}

#[tokio::test]
async fn fault_24_25_each_case_of_the_table() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let setup = Setup { script: vec![send(ok), Step::Close], ..setup() };
    let mut house = house(setup).await;
    let all = cases();
    assert!(all.len() >= 300, "only {} cases", all.len());
    let mut wrong = Vec::new();
    for case in &all {
        let raw = answer(&house, &case.raw).await;
        let (statuses, keep) = statuses(&raw, case.raw.starts_with(b"HEAD "));
        let mut engine = 0;
        while let Ok(seen) = house.engine.seen.try_recv() {
            engine += usize::from(matches!(seen, Seen::Request(_)));
        }
        let got = Outcome { statuses, keep, engine };
        if !case.expected.contains(&got) {
            let Outcome { statuses, keep, engine } = got;
            let expected = &case.expected;
            wrong.push(format!(
                "{}: {statuses:?} keep={keep} engine={engine}, not {expected:?}",
                case.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}
