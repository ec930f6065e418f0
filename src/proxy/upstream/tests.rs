//! Connecting, and TLS with what it holds back.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivateSec1KeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::forward::Failure;
use super::*;

/// Of `localhost`, until 2999, and of no worth elsewhere.
const CERTIFICATE: &str = "\
    MIIBXjCCAQSgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwIBcNMDAwMTAxMDAwMDAwWhgPMjk5OTEy\
    MzEyMzU5NTlaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABGxWoo8YZhMvzapcEvi5Dfuv\
    As2E3HP8xnigBjIE9VlfUX95dLMwNQZR8Pm33xXMT52RRuJJWBO6N8ov1SdfgmyjRTBDMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAM\
    BgNVHRMBAf8EAjAAMB0GA1UdDgQWBBT9iPjqVGM7Tz/gThtUPRL5LOSMRzAKBggqhkjOPQQDAgNIADBFAiAInw+IPnePFU6Gk3st\
    OUCM4BYcNk3qFTtGs63Wmgq3+QIhAL95qoPXlnerKxPklA3kk9nHLrNxEzEn7S5LiaU4gA0s";
const KEY: &str = "\
    MHcCAQEEINt6x6EuuU/W7IbS8yP3DIYwwizvnjLQNkJqGNOrl/8goAoGCCqGSM49AwEHoUQDQgAEbFaijxhmEy/NqlwS+LkN+68C\
    zYTcc/zGeKAGMgT1WV9Rf3l0szA1BlHw+bffFcxPnZFG4klYE7o3yi/VJ1+CbA==";

/// Sockets that hold next to nothing: ours, and the other side of it.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    (stream, listener.accept().await.unwrap().0)
}

/// The same with TLS over it.
async fn tls() -> (Conn, TlsStream<TcpStream>) {
    let certificate = CertificateDer::from(STANDARD.decode(CERTIFICATE).unwrap());
    let key = PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(STANDARD.decode(KEY).unwrap()));
    let provider = Arc::new(crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let theirs = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let ours = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (stream, accepted) = tcp().await;
    let name = "localhost".try_into().unwrap();
    let (ours, theirs) = tokio::join!(
        TlsConnector::from(Arc::new(ours)).connect(name, stream),
        TlsAcceptor::from(Arc::new(theirs)).accept(accepted)
    );
    (Conn::new(Stream::Tls(Box::new(ours.unwrap()))), theirs.unwrap())
}

async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), event).await.expect("it hangs")
}

/// TLS takes bytes that the socket does not take yet. They have to be sent on, or both sides wait for each other.
#[tokio::test]
async fn over_tls_all_of_a_request_arrives() {
    for size in [0, 1000, 5000, 20_000, 50_000, 70_000, 200_000, 1_000_001] {
        let (mut conn, mut theirs) = tls().await;
        let (head, body) = (vec![b'h'; 100], vec![b'b'; size]);
        let asked = async {
            conn.send(&head, &body).await.unwrap();
            conn.head().await.unwrap().status
        };
        let answers = async {
            let mut raw = vec![0; 100 + size];
            theirs.read_exact(&mut raw).await.unwrap();
            theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            theirs.flush().await.unwrap();
        };
        let (status, ()) = soon(async { tokio::join!(asked, answers) }).await;
        assert_eq!((status.as_u16(), conn.is_sent()), (200, true), "{size}");
    }
}

/// The other side reads nothing any more: what it says is heard though some of the request is not sent.
#[tokio::test]
async fn over_tls_who_answers_early_is_heard() {
    for size in [50_000, 1_000_000] {
        let (mut conn, mut theirs) = tls().await;
        let body = vec![b'b'; size];
        let asked = async {
            conn.send(b"h", &body).await.unwrap();
            conn.head().await.unwrap().status
        };
        let answers = async {
            theirs.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            theirs.flush().await.unwrap();
        };
        let (status, ()) = soon(async { tokio::join!(asked, answers) }).await;
        assert_eq!((status.as_u16(), conn.is_sent()), (413, false), "{size}");
    }
}

/// Asks, and answers with interim answers before and within the request; each is written in two pieces.
async fn interim(mut conn: Conn, mut theirs: impl AsyncRead + AsyncWrite + Unpin) {
    let body = vec![b'b'; 1_000_000];
    let asked = async {
        conn.send(b"h", &body).await.unwrap();
        assert!(conn.is_sent(), "an interim answer is none");
        conn.head().await.unwrap().status
    };
    let answers = async {
        let mut raw = Vec::new();
        for half in [500_000, 500_001] {
            for piece in ["HTTP/1.1 100 Cont", "inue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 1"] {
                theirs.write_all(piece.as_bytes()).await.unwrap();
                theirs.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
            raw.resize(half, 0);
            theirs.read_exact(&mut raw).await.unwrap();
            theirs.write_all(b"02 Processing\r\n\r\n").await.unwrap();
        }
        theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        theirs.flush().await.unwrap();
    };
    let (status, ()) = soon(async { tokio::join!(asked, answers) }).await;
    assert_eq!((status.as_u16(), conn.is_sent()), (200, true));
}

#[tokio::test]
async fn an_interim_answer_is_no_reason_to_send_no_more() {
    let (ours, theirs) = tcp().await;
    interim(Conn::new(Stream::Tcp(ours)), theirs).await;
    let (conn, theirs) = tls().await;
    interim(conn, theirs).await;
}

/// It has the request in its hands: it must not be asked a second time.
#[tokio::test]
async fn who_goes_behind_an_interim_answer_was_not_silent() {
    let (ours, mut theirs) = tcp().await;
    let mut conn = Conn::new(Stream::Tcp(ours));
    let goes = async {
        theirs.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        drop(theirs);
    };
    let (said, ()) = soon(async { tokio::join!(conn.speaks(), goes) }).await;
    assert_eq!(said.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(matches!(conn.head().await, Err(Lost::Broken(_))));
}

#[tokio::test]
async fn connecting_is_tried_twice_and_then_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.sock");
    let endpoint = Endpoint::Unix(path.clone());
    let error = connect(&endpoint, Duration::from_secs(5)).await.unwrap_err();
    let api = Failure::Connect(error).to_api("m");
    assert_eq!((api.status.as_u16(), api.code), (502, "engine_unreachable"));
    assert!(api.message.starts_with("model m: the engine could not be reached: "), "{api:?}");
    let _listener = tokio::net::UnixListener::bind(&path).unwrap();
    connect(&endpoint, Duration::from_secs(5)).await.unwrap();
}

/// With a Unix socket's usual room a large body would stop and go all the way.
#[tokio::test]
async fn a_large_piece_gets_more_room_and_a_small_one_needs_none() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        all.len()
    });
    let room = |conn: &Conn| {
        let Stream::Unix(socket) = &conn.stream else { panic!("{conn:?}") };
        sockopt::socket_send_buffer_size(socket).unwrap()
    };
    let mut conn = Conn::new(Stream::Unix(ours));
    let usual = room(&conn);
    soon(conn.send(b"head", &[b' '; LARGE - 1])).await.unwrap();
    assert_eq!(room(&conn), usual);
    soon(conn.send(b"", &[b' '; LARGE])).await.unwrap();
    assert!(room(&conn) > usual, "{} is not more than {usual}", room(&conn));
    drop(conn);
    assert_eq!(reader.await.unwrap(), 4 + LARGE - 1 + LARGE);
}
