//! Heads in, routes out.

use super::*;
use hyper::header::HeaderValue;

fn head(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

fn get(target: &'static str) -> Result<Route, ApiError> {
    route(&Method::GET, &Uri::from_static(target), Version::HTTP_11, &head(&[]))
}

#[test]
fn known_paths() {
    assert_eq!(get("/v1/models"), Ok(Route::Models));
    assert_eq!(get("/"), Ok(Route::Root));
    assert_eq!(get("/health?x=1"), Ok(Route::Health));
    assert_eq!(get("/ready"), Ok(Route::Ready));
    assert_eq!(get("/api/v1/status"), Ok(Route::Status(Format::Json)));
    for task in Task::all() {
        let uri = Uri::from_static(task.path());
        let headers = head(&[("content-length", "2")]);
        let got = route(&Method::POST, &uri, Version::HTTP_11, &headers);
        assert_eq!(got, Ok(Route::Inference(task)));
        assert_eq!(get(task.path()).unwrap_err().status, 405, "{task:?}");
    }
    assert_eq!(get("/api/version"), Ok(Route::Ollama(Ollama::Version)));
    assert_eq!(get("/api/tags"), Ok(Route::Ollama(Ollama::Tags)));
    assert_eq!(get("/api/ps"), Ok(Route::Ollama(Ollama::Ps)));
}

#[test]
fn an_earlier_answer_by_its_identifier() {
    let asked = |id: &str, act, query: &str| {
        let (id, query) = (id.to_owned(), query.to_owned());
        Ok(Route::Recall(Recall { id, act, query }))
    };
    let recall = |id, act| asked(id, act, "");
    for (query, passed) in [
        ("stream=true&starting_after=5", "?stream=true&starting_after=5"),
        ("starting_after=0&x=%2e&stream=false", "?stream=false&starting_after=0"),
        ("stream=yes&stream=true", ""),
        ("starting_after=%0d%0a&starting_after=1", ""),
        ("starting_after=-1&streams=true", ""),
    ] {
        let target = format!("/v1/responses/r?{query}");
        let got = route(&Method::GET, &target.parse().unwrap(), Version::HTTP_11, &head(&[]));
        assert_eq!(got, asked("r", Act::Retrieve, passed), "{query}");
    }
    assert_eq!(get("/v1/responses/resp_a-1"), recall("resp_a-1", Act::Retrieve));
    let post =
        |target| route(&Method::POST, &Uri::from_static(target), Version::HTTP_11, &head(&[]));
    assert_eq!(post("/v1/responses/r/cancel"), recall("r", Act::Cancel));
    assert_eq!(post("/v1/responses/r/cancel?stream=true"), recall("r", Act::Cancel));
    for unknown in
        ["/v1/responses/", "/v1/responses/a/b", "/v1/responses/a.b", "/v1/responses/a/cancel/x"]
    {
        assert_eq!(get(unknown).unwrap_err().status, 404, "{unknown}");
    }
    assert_eq!(post("/v1/responses/r").unwrap_err().status, 405);
    for path in ["/v1/responses/input_tokens", "/v1/responses/compact"] {
        assert_eq!(post(path).unwrap_err().status, 404, "{path} is no answer's name");
    }
    assert_eq!(get("/v1/responses/r/cancel").unwrap_err().status, 405);
    assert_eq!(get("/v1/responses/%2e%2e").unwrap_err().status, 400);
}

#[test]
fn a_web_socket_names_its_model_in_the_query() {
    const SOCKET: [(&str, &str); 4] = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let ask = |target, headers: &[_]| {
        route(&Method::GET, &Uri::from_static(target), Version::HTTP_11, &head(headers))
    };
    let got = ask("/v1/realtime?intent=x&model=org%2Fa", &SOCKET);
    assert_eq!(got, Ok(Route::Realtime("org/a".to_owned())));
    assert_eq!(ask("/v1/realtime?model=a", &[]).unwrap_err().status, 426);
    assert_eq!(ask("/v1/realtime?model=a", &SOCKET[..3]).unwrap_err().status, 426);
    assert_eq!(ask("/v1/realtime", &SOCKET).unwrap_err().status, 400);
    assert_eq!(ask("/v1/realtime?model=a&model=b", &SOCKET).unwrap_err().status, 400);
    assert_eq!(ask("/v1/models", &SOCKET), Ok(Route::Models), "an offer may be declined");
    for other in ["h2c", "h2c, websocket", ""] {
        let mut offer = SOCKET;
        offer[0].1 = other;
        let refused = ask("/v1/realtime?model=a", &offer).unwrap_err();
        assert_eq!(refused.status, 426, "{other:?}");
    }
}

#[test]
fn a_page_of_another_site_asks_first() {
    let asks = [("access-control-request-method", "POST"), ("origin", "https://a")];
    let options = |target, headers: &[_]| {
        route(&Method::OPTIONS, &Uri::from_static(target), Version::HTTP_11, &head(headers))
    };
    assert_eq!(options("/v1/chat/completions", &asks), Ok(Route::Preflight));
    // What is wrong with the path is told to the request itself, which a page can read.
    assert_eq!(options("/nowhere", &asks), Ok(Route::Preflight));
    assert_eq!(options("/v1%2fmodels", &asks).unwrap_err().status, 400);
    assert_eq!(options("/v1/chat/completions", &[]).unwrap_err().status, 405);
}

#[test]
fn a_model_by_name_with_slashes() {
    let name = |n: &str| Ok(Route::Model(n.parse().unwrap()));
    assert_eq!(get("/v1/models/a"), name("a"));
    assert_eq!(get("/v1/models/Qwen/Qwen3-8B"), name("Qwen/Qwen3-8B"));
    assert_eq!(get("/v1/models/Qwen%2FQwen3:8b"), name("Qwen/Qwen3:8b"));
    for unknown in ["/v1/models/", "/v1/models/a/", "/v1/models/%41%20"] {
        assert_eq!(get(unknown).unwrap_err().status, 404, "{unknown}");
    }
    for bad in ["%", "%2", "%zz", "%ff", "..%2fchat", "a%2f%2e%2e%2fb", "%2Fa", "a%5cb"] {
        let uri: Uri = format!("/v1/models/{bad}").parse().unwrap();
        let got = route(&Method::GET, &uri, Version::HTTP_11, &head(&[]));
        assert_eq!(got.unwrap_err().status, 400, "{bad}");
    }
}

#[test]
fn unknown_paths_and_hidden_ones() {
    for unknown in ["/v1", "/v1/chat/completions/", "/V1/models", "/sleep"] {
        let error = get(unknown).unwrap_err();
        assert_eq!((error.status.as_u16(), error.close), (404, false), "{unknown}");
    }
    for ollamas in ["/api/chat", "/api/generate", "/api/show"] {
        let error = get(ollamas).unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (404, "unknown_path"), "{ollamas}");
        assert!(error.message.contains("/v1"), "{}", error.message);
    }
    for bad in ["/v1%2fmodels", "/v1/%63hat/completions", "/v1/../health", "/%2e%2e/x"] {
        let error = get(bad).unwrap_err();
        assert_eq!((error.status.as_u16(), error.close), (400, true), "{bad}");
    }
}

/// vLLM's development routes run code in the engine: with them on, no client may come near them.
#[test]
fn routes_for_development_are_nobodys() {
    let headers = head(&[("content-length", "2")]);
    for path in [
        "/sleep?level=1",
        "/sleep?level=2&mode=abort",
        "/wake_up",
        "/wake_up?tags=weights",
        "/is_sleeping",
        "/collective_rpc",
        "/pause",
        "/resume",
        "/server_info",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/start_profile",
        "/stop_profile",
        "/load",
        "/version",
        "/ping",
        "/invocations",
        "/pooling",
        "/classify",
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/props",
        "/slots",
        "/slots/0?action=save",
        "/lora-adapters",
        "/completion",
        "/infill",
        "/apply-template",
        "/models/load",
        "/tools",
        "/docs",
        "/openapi.json",
        "/get_server_info",
        "/flush_cache",
        "/update_weights_from_disk",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/generate",
        "/api/generate",
        "/api/chat",
        "/api/pull",
        "/api/delete",
        "/api/show",
        "/_fake/state",
        "/v1/../collective_rpc",
        "/v1/completions/../../sleep",
        "//sleep",
        "/%73leep",
    ] {
        for method in [Method::GET, Method::POST, Method::HEAD] {
            let uri: Uri = path.parse().unwrap();
            let got = route(&method, &uri, Version::HTTP_11, &headers);
            let status = got.unwrap_err().status.as_u16();
            assert!(status == 404 || status == 400, "{method} {path}: {status}");
        }
    }
}

#[test]
fn methods_and_lengths() {
    let error = get("/v1/chat/completions").unwrap_err();
    assert_eq!((error.status.as_u16(), error.allow), (405, Some("POST")));
    let post = |target, pairs: &[_]| {
        route(&Method::POST, &Uri::from_static(target), Version::HTTP_11, &head(pairs))
    };
    let error = post("/health", &[]).unwrap_err();
    assert_eq!((error.status.as_u16(), error.allow), (405, Some("GET, HEAD")));
    assert_eq!(post("/v1/embeddings", &[]).unwrap_err().status, 411);
    assert!(post("/v1/embeddings", &[("transfer-encoding", "chunked")]).is_ok());
    assert_eq!(post("/nowhere", &[]).unwrap_err().status, 404);
    let uri = Uri::from_static("/ready");
    let head = route(&Method::HEAD, &uri, Version::HTTP_11, &head(&[]));
    assert_eq!(head, Ok(Route::Ready));
}

#[test]
fn accept_chooses_the_format() {
    let status = |accept: &'static str| {
        let uri = Uri::from_static("/api/v1/status");
        route(&Method::GET, &uri, Version::HTTP_11, &head(&[("accept", accept)])).unwrap()
    };
    assert_eq!(status("text/plain"), Route::Status(Format::Text));
    assert_eq!(status("text/html, text/plain;q=0.5, */*"), Route::Status(Format::Text));
    assert_eq!(status("application/json, text/plain"), Route::Status(Format::Json));
    assert_eq!(status("*/*"), Route::Status(Format::Json));
}

#[test]
fn pages_about_the_host() {
    use crate::proxy::port::{Act, Page};
    let name = |n: &str| -> ModelName { n.parse().unwrap() };
    for (path, page) in [
        ("/metrics", Page::Metrics),
        ("/metrics/models/org/a", Page::EngineMetrics(name("org/a"))),
        ("/ui", Page::Ui),
        ("/ui/", Page::Ui),
        ("/api/v1/models", Page::Models),
        ("/api/v1/externals", Page::Externals),
        ("/api/v1/gpus", Page::Gpus),
        ("/api/v1/jobs", Page::Jobs),
        ("/api/v1/events", Page::Events),
        ("/api/v1/openapi.json", Page::OpenApi),
        ("/api/v1/models/org%2Fa/log", Page::Log(name("org/a"))),
        ("/debug/state", Page::DebugState),
        ("/debug/plan?model=org%2Fa", Page::DebugPlan(name("org/a"))),
    ] {
        assert_eq!(get(path), Ok(Route::Page(page)), "{path}");
    }
    let post = |path: &'static str| {
        route(&Method::POST, &Uri::from_static(path), Version::HTTP_11, &head(&[]))
    };
    let load = Route::Page(Page::Act(name("org/a"), Act::Load));
    assert_eq!(post("/api/v1/models/org/a/load"), Ok(load));
    assert_eq!(get("/api/v1/models/org/a/load").unwrap_err().status, 405);
    for bad in ["/debug/plan", "/debug/plan?model=a&model=b", "/debug/plan?x=1"] {
        assert_eq!(get(bad).unwrap_err().status, 400, "{bad}");
    }
    for none in ["/api/v1/models/a", "/api/v1/models/a/explode", "/debug", "/ui/x", "/metrics/"] {
        assert_eq!(get(none).unwrap_err().status, 404, "{none}");
    }
}
