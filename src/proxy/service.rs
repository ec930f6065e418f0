//! One request, from its head to its answer.
//!
//! Purpose: the order of the steps; each step is elsewhere. Owner: a connection's task. Invariants: a refused request has
//! asked the supervisor for nothing, but for what `inference` says of large bodies; every answer carries the request's ID; the future of a request may be dropped at any
//! point (its client has left) and leaves nothing behind.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Answer, Source};
use super::budget::Budget;
use super::conn::Busy;
use super::endpoints::Dialect;
use super::error::ApiError;
use super::external::Healths;
use super::forward::Engines;
use super::gate::Gate;
use super::inference::{self, Visitor};
use super::intake;
use super::keys;
use super::page;
use super::port::{Console, Observer};
use super::recall::{self, Answers};
use super::record::Record;
use super::respond::{self, Whole};
use super::route::{Route, route};
use super::rules::{Rules, SharedRules};
use super::server::Limits;
use super::site;
use super::stream::Peer;
use super::strict;
use super::websocket;
use crate::supervisor::handle::Handle;
use crate::types::ModelName;

/// What all requests share.
pub(super) struct Service {
    pub supervisor: Handle,
    pub limits: Arc<Limits>,
    pub engines: Arc<Engines>,
    pub rules: SharedRules,
    pub gate: Arc<Gate>,
    pub budget: Arc<Budget>,
    pub answers: Arc<Answers>,
    /// What is known of external endpoints.
    pub healths: Arc<Healths>,
    /// WebSockets, which outlive their requests.
    pub tunnels: TaskTracker,
    /// One of them has ended.
    pub closed: Notify,
    /// Their time is over.
    pub cut: CancellationToken,
    /// Unix seconds of the daemon's start.
    pub created: u64,
    /// The server is about to end: clients are told to come back on a new connection.
    pub ending: CancellationToken,
    /// Who counts requests.
    pub observer: Arc<dyn Observer>,
    /// Who answers for the host.
    pub console: Arc<dyn Console>,
}

impl Service {
    /// Answers a request.
    pub async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        busy: Busy,
        peer: Peer,
    ) -> Response<Answer> {
        let mut record = Record::new(request.headers(), self.observer.clone());
        record.trace(&request);
        let head = request.method() == Method::HEAD;
        let dialect = Dialect::of(request.uri().path());
        let mut origin = None;
        let result = {
            let mut work = std::pin::pin!(self.dispatch(request, peer, &mut record, &mut origin));
            std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Pending if busy.is_over() => Poll::Ready(Err(ApiError::drained())),
                polled @ (Poll::Ready(_) | Poll::Pending) => polled,
            })
            .await
        };
        let (parts, mut source) = match result {
            Ok(response) => response.into_parts(),
            Err(error) => {
                record.error = Some(error.code);
                record.fault = error.is_engines().then(|| error.message.clone());
                own(respond::error(&error, dialect, &record.id())).into_parts()
            }
        };
        if head {
            source = Source::Whole(None);
        }
        record.status = Some(parts.status.as_u16());
        let id = record.id();
        let (source, record) = if let Source::Socket(tunnel) = source {
            tunnel.begin(record);
            (Source::Whole(None), None)
        } else {
            (source, Some(record))
        };
        let answer = Answer { source, record, busy };
        let mut response = Response::from_parts(parts, answer);
        respond::name(response.headers_mut(), dialect, id);
        if let Some(origin) = origin {
            site::share(response.headers_mut(), origin);
        }
        if self.ending.is_cancelled() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    async fn dispatch(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
        record: &mut Record,
        origin: &mut Option<HeaderValue>,
    ) -> Result<Response<Source>, ApiError> {
        let (mut head, mut body) = request.into_parts();
        record.pass_trace(&mut head);
        let (route, visitor) = match self.admit(&head, peer, record, origin) {
            Ok(admitted) => admitted,
            Err(error) => {
                // Where the head cannot be trusted, neither can the body's end. A client that asked first sends none.
                if !error.close && !strict::has(&head.headers, &header::EXPECT) {
                    intake::discard(&mut body).await;
                }
                return Err(error);
            }
        };
        let status = || self.supervisor.status();
        // A model that was removed is seen until its last request has ended, and cannot be asked for any more.
        let may = |name: &ModelName| {
            visitor.rules.models.contains_key(name)
                && visitor.key().is_none_or(|key| key.allows(name))
        };
        match route {
            Route::Inference(task) => {
                inference::infer(self, task, head, body, visitor, record).await
            }
            Route::Recall(recall) => {
                Box::pin(recall::recall(self, recall, head.headers, body, &visitor, record)).await
            }
            Route::Realtime(model) => {
                Box::pin(websocket::open(self, head, model, &visitor, record)).await
            }
            Route::Models => {
                let (status, others) = (status(), Self::others(&visitor.rules, &may));
                Ok(own(respond::models(&status, self.created, may, others)))
            }
            Route::Model(name) => {
                let others = Self::others(&visitor.rules, &may);
                respond::model(&status(), &name, self.created, may, others).map(own)
            }
            Route::Root => {
                record.routine = true;
                Ok(own(respond::root()))
            }
            Route::Health | Route::Ready => {
                record.routine = true;
                let named = visitor.rules.keys.is_empty() || visitor.key.is_some();
                let known = named && page::sees_all(&visitor).is_ok();
                let health = matches!(route, Route::Health);
                Ok(own(if health { respond::health() } else { respond::ready(&status(), known) }))
            }
            Route::Status(format) => {
                let externals = self.healths.status(&visitor.rules);
                Ok(own(respond::status(&status(), format, self.console.about(), externals)))
            }
            Route::Ollama(what) => {
                let (status, others) = (status(), Self::others(&visitor.rules, &may));
                Ok(own(respond::ollama(what, &status, self.created, may, others)))
            }
            Route::Page(page) => {
                intake::discard(&mut body).await;
                page::answer(self, page, (&visitor, peer), &head.headers, record).await
            }
            Route::Preflight => {
                let mut response = respond::nothing();
                if origin.is_some() {
                    site::preflight(response.headers_mut(), &head.headers);
                }
                Ok(own(response))
            }
        }
    }

    /// Names of models that run elsewhere.
    fn others<'r>(
        rules: &'r Rules,
        may: &'r impl Fn(&ModelName) -> bool,
    ) -> impl Iterator<Item = &'r ModelName> {
        let mine = |name: &&ModelName| rules.externals.contains_key(*name) && may(name);
        let aliases = rules.aliases.iter().filter(move |(_, name)| mine(name));
        rules.externals.keys().filter(|name| may(name)).chain(aliases.map(|(alias, _)| alias))
    }

    /// Who asks for what, from the head alone.
    fn admit(
        &self,
        head: &Parts,
        peer: Peer,
        record: &mut Record,
        origin: &mut Option<HeaderValue>,
    ) -> Result<(Route, Visitor), ApiError> {
        let routed = match route(&head.method, &head.uri, head.version, &head.headers) {
            Err(error) if error.close => return Err(error),
            routed @ (Ok(_) | Err(_)) => routed,
        };
        if let Ok(route) = &routed {
            record.route = route.name();
        }
        let rules = self.rules.load_full();
        // Before what is wrong with the path, so that a page of a listed site can read it.
        if peer != Peer::Monitoring {
            *origin = site::check(&rules, peer, &head.headers)?;
        }
        let route = routed?;
        if peer == Peer::Monitoring {
            page::is_monitoring(&route)?;
        }
        let open = if let Route::Page(page) = &route {
            page::is_open(page, peer, &head.headers)
        } else {
            matches!(route, Route::Root | Route::Health | Route::Ready | Route::Preflight)
        };
        let key = if rules.keys.is_empty() {
            None
        } else {
            let socket = matches!(route, Route::Realtime(_));
            match keys::identify(&rules.keys, &head.headers, socket) {
                Ok(at) => Some(at),
                // Whoever only asks whether we live need not say who they are.
                Err(_) if open => None,
                Err(error) => return Err(error),
            }
        };
        let visitor = Visitor { rules, key };
        record.key = visitor.name().map(str::to_owned);
        if let Route::Page(page) = &route {
            page::may(page, peer, &visitor)?;
        } else if let Route::Status(_) = route {
            page::sees_all(&visitor)?;
        }
        Ok((route, visitor))
    }
}

fn own(response: Whole) -> Response<Source> {
    response.map(|bytes| Source::Whole(Some(bytes)))
}
