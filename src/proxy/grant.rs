//! The right to ask an engine once.
//!
//! Purpose: one of ours under a lease and one that runs elsewhere look the same to whoever forwards. Owner: the request, then its
//! answer. Invariant: what is held ends in the order of the fields.

use hyper::Request;
use hyper::header;

use super::external::Far;
use super::forward::{Failure, Upstream};
use super::gate::Slot;
use super::order::{self, Order};
use super::stream::Stream;
use super::upstream;
use crate::supervisor::handle::Lease;
use crate::supervisor::ports::Endpoint;

/// Whom to ask.
#[derive(Debug)]
pub(super) enum Engine {
    /// One of ours.
    Own(Lease),
    /// One of ours, for a question that is no use of its model: it may be gone at any moment.
    Unheld(Endpoint),
    /// One that runs elsewhere.
    Far(Far),
}

/// What a request holds while an engine works for it.
#[derive(Debug)]
pub(super) struct Grant {
    pub engine: Engine,
    /// Its turn, where turns are counted.
    pub _slot: Option<Slot>,
}

impl Grant {
    /// The lease, where there is one.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.engine {
            Engine::Own(lease) => Some(lease),
            Engine::Unheld(_) | Engine::Far(_) => None,
        }
    }

    /// The engine has answered, or gone on with its answer: it lives, however it answers when it is asked for its health.
    pub fn heard(&self) {
        match &self.engine {
            Engine::Own(lease) => lease.heard(),
            Engine::Far(far) => far.heard(),
            Engine::Unheld(_) => {}
        }
    }

    /// The engine answers that it will not do what it was asked: of one that runs elsewhere, what stands before it may say so.
    pub fn refused(&mut self) {
        if let Engine::Far(far) = &mut self.engine {
            far.refuses();
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Where nobody listens, in time or at all.
    pub async fn connect(&self, upstream: &Upstream) -> Result<Stream, Failure> {
        let limit = upstream.connect_timeout;
        let near = match &self.engine {
            Engine::Own(lease) => lease.endpoint(),
            Engine::Unheld(endpoint) => endpoint,
            Engine::Far(far) => {
                let connected = tokio::time::timeout(limit, far.external.connect()).await;
                let late = |_| Err(std::io::ErrorKind::TimedOut.into());
                return connected.unwrap_or_else(late).map_err(Failure::Connect);
            }
        };
        upstream::connect(near, limit).await.map_err(Failure::Connect)
    }

    /// A request of ours, as this engine has to get it.
    pub fn dress<B>(&self, mut request: Request<B>) -> Request<B> {
        let near = match &self.engine {
            Engine::Own(lease) => lease.endpoint(),
            Engine::Unheld(endpoint) => endpoint,
            Engine::Far(far) => {
                let (mut head, body) = request.into_parts();
                far.external.dress(&mut head);
                return Request::from_parts(head, body);
            }
        };
        if let Some(bearer) = near.key().and_then(|key| order::bearer(key.0.as_bytes())) {
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
        request
    }

    /// The bytes of an order for this engine: its head, and what of its body goes out with it.
    pub fn written(&self, order: &Order, body: &[u8]) -> Vec<u8> {
        match &self.engine {
            Engine::Own(lease) if lease.endpoint().key().is_none() => order.written(body),
            Engine::Own(_) | Engine::Unheld(_) | Engine::Far(_) => {
                order::written(&self.dress(order.request()), body)
            }
        }
    }
}
