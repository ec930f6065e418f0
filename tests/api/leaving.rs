//! A client that leaves is felt at once, and its lease comes back once.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::engine::{Step, send};
use crate::house::{Happened, House, Policy, Setup, house, playing};
use crate::wire::{BODY, CHAT, Client, SSE, chunk, post_with};

/// DESIGN's bound on how late an engine may feel it.
const FELT: Duration = Duration::from_millis(100);

fn leave_by_fin(client: Client<TcpStream>) {
    drop(client);
}

fn leave_by_reset(client: Client<TcpStream>) {
    client.io.set_zero_linger().unwrap();
    drop(client);
}

/// Lets a client leave in the middle and measures when the engine feels it. A machine under load may be late
/// once; a server that is late by design is late always.
async fn felt(script: &[Step], ready: &str, leave: fn(Client<TcpStream>)) {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let mut house = playing(script.to_vec()).await;
        let mut client = house.client().await;
        client.send(post_with(CHAT, "", BODY)).await;
        house.engine.request().await;
        if !ready.is_empty() {
            client.until(ready).await;
        }
        let start = Instant::now();
        leave(client);
        house.engine.left().await;
        best = best.min(start.elapsed());
        let events = [Happened::Asked("m".into()), Happened::Released];
        house.supervisor.expect(&events).await;
        settled(house).await;
        if best <= FELT {
            return;
        }
    }
    panic!("the engine felt it only after {best:?}");
}

/// Ends the server; nothing more may have been released.
async fn settled(mut house: House) {
    house.stop.cancel();
    crate::wire::soon("the server to end", &mut house.served).await.unwrap();
    house.supervisor.quiet();
}

#[tokio::test]
async fn fault_21_while_the_engine_thinks() {
    felt(&[], "", leave_by_fin).await;
    felt(&[], "", leave_by_reset).await;
}

#[tokio::test]
async fn fault_21_in_the_middle_of_a_stream() {
    let script = [send(SSE), send(chunk("data: 1\n\n"))];
    felt(&script, "data: 1", leave_by_fin).await;
    felt(&script, "data: 1", leave_by_reset).await;
}

#[tokio::test]
async fn fault_21_in_the_middle_of_a_plain_body() {
    let script = [send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"a\":")];
    felt(&script, "{\"a\":", leave_by_fin).await;
    felt(&script, "{\"a\":", leave_by_reset).await;
}

#[tokio::test]
async fn fault_21_while_it_waits_for_a_lease() {
    let setup = Setup { policy: Policy::Hold, ..Setup::default() };
    let mut house = house(setup).await;
    for leave in [leave_by_fin, leave_by_reset] {
        let mut client = house.client().await;
        client.send(post_with(CHAT, "", BODY)).await;
        house.supervisor.expect(&[Happened::Asked("m".into())]).await;
        leave(client);
        house.supervisor.expect(&[Happened::Cancelled]).await;
        // The supervisor granted it before it read of the leave: the lease comes back.
        assert_eq!(house.supervisor.grant_held(), [false]);
        house.supervisor.expect(&[Happened::Released]).await;
    }
    house.engine.untouched();
    settled(house).await;
}

#[tokio::test]
async fn a_lease_ends_with_the_last_byte_not_with_the_connection() {
    let script = vec![send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")];
    let mut house = playing(script).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", BODY)).await;
    client.until("{}").await;
    // The client keeps its connection, the engine keeps its own: neither keeps the lease.
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
    drop(client);
    settled(house).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut() {
    let mut script = vec![send(SSE)];
    // More than all socket buffers on the way can hold.
    script.extend(std::iter::repeat_n(send(chunk(vec![b'x'; 1 << 20])), 64));
    let mut setup = Setup { script, ..Setup::default() };
    setup.limits.stall_timeout = Duration::from_millis(300);
    let mut house = house(setup).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", BODY)).await;
    house.engine.request().await;
    house.engine.left().await;
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
}
