//! A daemon that could not start tells those who wait why.

use std::time::{Duration, Instant};

use hostler::proxy::{Cause, Listener, refuse};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::wire::{BODY, CHAT, Client, get, post, soon};

const CAUSE: &str = "NVML reports zero memory on GPU-a";

fn cause() -> Cause {
    Cause { cause: CAUSE.into(), brief: "for other hosts".into() }
}

#[tokio::test]
async fn queued_and_new_connections_get_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let listeners: Vec<Listener> = vec![tcp.into(), UnixListener::bind(&path).unwrap().into()];
    let mut queued = Vec::new();
    for request in [get("/health").into_bytes(), post(CHAT, BODY), get("/nowhere").into_bytes()] {
        let mut client = Client::new(TcpStream::connect(address).await.unwrap());
        client.send(request).await;
        queued.push(client);
    }
    let mut unix = Client::new(UnixStream::connect(&path).await.unwrap());
    unix.send(post(CHAT, vec![b'x'; 16 << 10])).await;

    let grace = Duration::from_millis(600);
    let start = Instant::now();
    let refusing = tokio::spawn(refuse(listeners, cause(), grace));
    for client in queued {
        let reply = client.reply().await;
        let error = reply.error(503, "startup_failed");
        assert_eq!(error["message"], CAUSE);
        assert_eq!(reply.headers["retry-after"], "5");
        assert_eq!(reply.headers["connection"], "close");
    }
    unix.reply().await.error(503, "startup_failed");
    let mut late = Client::new(TcpStream::connect(address).await.unwrap());
    late.send(get("/v1/models")).await;
    late.reply().await.error(503, "startup_failed");
    assert!(!refusing.is_finished());
    soon("refuse to end", refusing).await.unwrap();
    assert!(start.elapsed() >= grace);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_silent_connection_does_not_hold_it() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _silent = TcpStream::connect(tcp.local_addr().unwrap()).await.unwrap();
    let listeners = vec![tcp.into()];
    soon("refuse to end", refuse(listeners, cause(), Duration::from_millis(50))).await;
}
