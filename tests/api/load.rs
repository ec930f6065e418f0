//! Many at once.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::engine::{Family, Step, send};
use crate::house::{Happened, Setup, house};
use crate::wire::{CHAT, SSE, chunk, post, soon};

const MANY: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_the_same_time() {
    // Four sockets for each request live in this one process.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();

    let gate = Arc::new(Semaphore::new(0));
    let script = vec![
        send(SSE),
        send(chunk("data: 1\n\n")),
        Step::Gate(gate.clone()),
        send(chunk("data: [DONE]\n\n")),
        send("0\r\n\r\n"),
    ];
    let setup = Setup { family: Family::Unix, script, ..Setup::default() };
    let mut house = house(setup).await;
    let mut clients = Vec::new();
    for i in 0..MANY {
        let mut client = house.client().await;
        clients.push(tokio::spawn(async move {
            let body = format!("{{\"model\":\"m\",\"seed\":{i}}}");
            client.send(post(CHAT, body)).await;
            client.reply().await
        }));
    }
    // All of them are in the engine at once before any may end.
    let mut bodies = std::collections::BTreeSet::new();
    for _ in 0..MANY {
        bodies.insert(house.engine.request().await.body);
    }
    assert_eq!(bodies.len(), MANY);
    gate.add_permits(MANY);
    for client in clients {
        let reply = soon("a client", client).await.unwrap();
        assert_eq!((reply.status, reply.whole), (200, true));
        assert_eq!(reply.text(), "data: 1\n\ndata: [DONE]\n\n");
    }
    let (mut asked, mut released) = (0, 0);
    while released < MANY {
        match house.supervisor.next().await {
            Happened::Asked(_) => asked += 1,
            Happened::Released => released += 1,
            Happened::Cancelled | Happened::Reached(_) => panic!("nobody left"),
        }
    }
    assert_eq!(asked, MANY);
    house.supervisor.quiet();
}
