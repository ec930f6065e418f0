//! Clients that are slow, large or many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hostler::types::{Bytes, DoorSpec};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::engine::{Step, send};
use crate::house::{House, Setup, house, rules};
use crate::wire::{BODY, CHAT, Client, get, post, post_with, soon};

const SHORT: Duration = Duration::from_millis(300);

async fn with(change: impl FnOnce(&mut hostler::proxy::Limits)) -> House {
    let script = vec![send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")];
    let mut setup = Setup { script, ..Setup::default() };
    change(&mut setup.limits);
    house(setup).await
}

#[tokio::test]
async fn fault_23_a_head_that_drips_is_cut() {
    let house = with(|l| l.header_timeout = SHORT).await;
    let start = Instant::now();
    let mut client = house.client().await;
    let drip = async {
        for byte in get("/health").as_bytes() {
            if client.io.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        panic!("the whole head went through");
    };
    soon("the cut", drip).await;
    assert!(start.elapsed() >= SHORT);
    let _ = client.end().await;
    assert_eq!(client.raw, b"");
}

#[tokio::test]
async fn a_second_head_that_stalls_is_cut_though_idling_is_allowed() {
    let house = with(|l| l.header_timeout = SHORT).await;
    let mut client = house.client().await;
    client.send("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.until("{\"status\":\"ok\"}").await;
    // Longer than a head may take: idling is not a slow head.
    tokio::time::sleep(2 * SHORT).await;
    client.raw.clear();
    client.send("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.until("{\"status\":\"ok\"}").await;
    client.raw.clear();
    let start = Instant::now();
    client.send("GET /hea").await;
    let _ = client.end().await;
    assert_eq!(client.raw, b"");
    assert!(start.elapsed() < Duration::from_secs(10), "cut as slow, not as idle");
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let house = with(|l| l.idle_timeout = SHORT).await;
    let mut client = house.client().await;
    client.send("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.until("{\"status\":\"ok\"}").await;
    let start = Instant::now();
    let _ = client.end().await;
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn fault_23_a_body_that_stalls_is_refused() {
    let mut house = with(|l| l.body_progress_timeout = SHORT).await;
    let mut client = house.client().await;
    let request = post(CHAT, BODY);
    client.send(&request[..request.len() - 10]).await;
    client.reply().await.error(408, "body_timeout");
    house.supervisor.quiet();
}

#[tokio::test]
async fn fault_23_a_body_that_drips_is_refused() {
    let house = with(|l| l.body_progress_timeout = SHORT).await;
    let mut client = house.client().await;
    let body = vec![b' '; 10_000];
    let request = post(CHAT, body);
    let (head, drip) = request.split_at(request.len() - 10_000);
    let drip = drip.to_vec();
    client.send(head).await;
    let (mut read, mut write) = client.io.into_split();
    let dripping = tokio::spawn(async move {
        for byte in drip {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut raw = Vec::new();
    let answered = async {
        use tokio::io::AsyncReadExt;
        while !raw.windows(12).any(|w| w == b"body_timeout") {
            assert_ne!(read.read_buf(&mut raw).await.unwrap(), 0);
        }
    };
    soon("the refusal", answered).await;
    dripping.abort();
}

#[tokio::test]
async fn fault_23_a_large_body_is_refused_and_its_client_can_read_why() {
    let mut house = with(|l| l.max_body = Bytes(64 << 10)).await;
    // Announced, and sent whole before anything is read.
    let body = vec![b' '; 8 << 20];
    house.ask(post(CHAT, &body)).await.error(413, "body_too_large");
    // Announced, and the client waits for permission.
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999999\r\nexpect: 100-continue\r\n\r\n"
    );
    let reply = house.ask(head).await;
    reply.error(413, "body_too_large");
    assert_eq!(reply.headers["connection"], "close");
    // Not announced.
    let mut request =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
            .into_bytes();
    for piece in body.chunks(1 << 20) {
        request.extend(crate::wire::chunk(piece));
    }
    request.extend(b"0\r\n\r\n");
    house.ask(request).await.error(413, "body_too_large");
    // Exactly as large as allowed.
    let mut fits = BODY.as_bytes().to_vec();
    fits.resize(64 << 10, b' ');
    assert_eq!(house.ask(post(CHAT, fits)).await.status, 200);
    assert_eq!(house.engine.request().await.body.len(), 64 << 10);
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let house = with(|_| {}).await;
    let mut client = house.client().await;
    let request = post_with(CHAT, "expect: 100-continue\r\nconnection: close\r\n", BODY);
    let (head, body) = request.split_at(request.len() - BODY.len());
    client.send(head).await;
    client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.raw.clear();
    client.send(body).await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn fault_23_heads_are_bounded() {
    let house = with(|_| {}).await;
    let many: String = (0..120).map(|i| format!("x-{i}: 1\r\n")).collect();
    for headers in [many, format!("x-a: {}\r\n", "y".repeat(40 << 10))] {
        let mut client = house.client().await;
        let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        client.send(head).await;
        let _ = client.end().await;
        assert!(
            client.raw.starts_with(b"HTTP/1.1 431 "),
            "{:?}",
            String::from_utf8_lossy(&client.raw)
        );
    }
    let fits = format!(
        "GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: {}\r\nconnection: close\r\n\r\n",
        "y".repeat(20 << 10)
    );
    assert_eq!(house.ask(fits).await.status, 200);
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";

#[tokio::test]
async fn where_the_house_is_full_who_has_idled_longest_makes_room() {
    let house = with(|l| l.max_connections = 2).await;
    let mut held = [house.client().await, house.client().await];
    for client in &mut held {
        client.send(HEALTH).await;
        client.until("{\"status\":\"ok\"}").await;
    }
    assert_eq!(house.ask(get("/health")).await.status, 200);
    let [mut first, mut second] = held;
    first.raw.clear();
    first.end().await.unwrap();
    assert_eq!(first.raw, b"");
    second.raw.clear();
    second.send(HEALTH).await;
    second.until("{\"status\":\"ok\"}").await;
}

/// Long before the time is over in which a head has to come.
#[tokio::test]
async fn where_the_house_is_full_heads_that_do_not_come_make_room() {
    let house = with(|l| l.max_connections = 2).await;
    let mut held = [house.client().await, house.client().await];
    for client in &mut held {
        client.send("GET /hea").await;
    }
    let since = Instant::now();
    assert_eq!(house.ask(get("/health")).await.status, 200);
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
}

/// Who is served stays, and who comes by another way does not wait for it.
#[tokio::test]
async fn surplus_connections_wait_for_their_turn() {
    let gate = Arc::new(Semaphore::new(0));
    let answer = send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let script = vec![Step::Gate(gate.clone()), answer, Step::Close];
    let mut setup = Setup { script, ..Setup::default() };
    setup.limits.max_connections = 2;
    let mut house = house(setup).await;
    let mut held = [house.client().await, house.client().await];
    for client in &mut held {
        client.send(post_with(CHAT, "", BODY)).await;
        house.engine.request().await;
    }
    let mut third = house.client().await;
    third.send(get("/health")).await;
    let early = tokio::time::timeout(SHORT, third.until("HTTP")).await;
    assert!(early.is_err(), "a third connection was served");
    let mut unix = house.unix_client().await;
    unix.send(get("/health")).await;
    assert_eq!(unix.reply().await.status, 200);
    let mut scraper = Client::new(TcpStream::connect(house.monitoring).await.unwrap());
    scraper.send(get("/health")).await;
    assert_eq!(scraper.reply().await.status, 200);
    // Both answers are whole, and the first who idles after that makes room.
    gate.add_permits(2);
    for client in &mut held {
        client.until("\r\n\r\n{}").await;
    }
    assert_eq!(third.reply().await.status, 200);
}

/// Nobody has to come or to go for it.
#[tokio::test]
async fn a_limit_that_a_reload_raises_lets_in_who_waits() {
    let limit = |max: u32| {
        let spec = DoorSpec { max_concurrent: Some(max), ..DoorSpec::default() };
        let mut rules = rules();
        rules.models.insert("m".parse().unwrap(), spec.into());
        rules
    };
    let mut house = house(Setup { rules: limit(1), ..Setup::default() }).await;
    let mut held = [house.client().await, house.client().await];
    for client in &mut held {
        client.send(post(CHAT, BODY)).await;
    }
    house.engine.request().await;
    let early = tokio::time::timeout(SHORT, house.engine.request()).await;
    assert!(early.is_err(), "a second was asked at once");
    house.rules.store(limit(2).into());
    house.engine.request().await;
}
