//! `bare PORT ENGINE`: a reverse proxy of nothing but hyper, which sends everything to one engine.
//!
//! Purpose: what the library costs by itself, so that what Hostler does on top of it can be told apart. It checks nothing, waits for
//! nobody, and knows no limits.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};

type Kept = Rc<RefCell<Vec<SendRequest<Full<Bytes>>>>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(port), Some(engine)) = (args.next(), args.next()) else { bail!("bare PORT ENGINE") };
    let port: u16 = port.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(port, engine))
}

async fn serve(port: u16, engine: String) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let (engine, kept): (Rc<str>, Kept) = (engine.into(), Rc::default());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (engine, kept) = (engine.clone(), kept.clone());
        let service = service_fn(move |request| pass(request, engine.clone(), kept.clone()));
        tokio::task::spawn_local(
            http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn pass(
    request: Request<Incoming>,
    engine: Rc<str>,
    kept: Kept,
) -> Result<Response<Incoming>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut onward = Request::new(Full::new(body));
    *onward.method_mut() = head.method;
    *onward.uri_mut() = head.uri;
    onward.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
    // One whose answer still streams is not ready.
    let free = kept.borrow().iter().rposition(SendRequest::is_ready);
    let taken = free.map(|at| kept.borrow_mut().swap_remove(at));
    let mut sender = match taken {
        Some(sender) => sender,
        None if engine.starts_with('/') => open(UnixStream::connect(&*engine).await?).await?,
        None => {
            let stream = TcpStream::connect(&*engine).await?;
            stream.set_nodelay(true)?;
            open(stream).await?
        }
    };
    sender.ready().await?;
    let answer = sender.send_request(onward).await?;
    kept.borrow_mut().push(sender);
    Ok(answer)
}

async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}
