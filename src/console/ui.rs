//! `GET /ui`: the dashboard, one page without anything from elsewhere.
//!
//! Owner: none. Invariants: the page is the same for everybody and holds nothing of the host: what it shows, it asks for with the key
//! that its visitor typed; its policy runs its own script and no other, and lets it reach nothing but this endpoint.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::Response;
use hyper::header::{self, HeaderValue};
use sha2::{Digest, Sha256};

use super::whole;
use crate::proxy::port::Content;

/// The page, and the policy that its script and style are named in by their digests.
static PAGE: LazyLock<(Bytes, String)> = LazyLock::new(|| {
    let (style, script) = (include_str!("ui/style.css"), include_str!("ui/script.js"));
    let page = include_str!("ui/page.html");
    let page = page.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script);
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text));
    // Widths of bars are set through the style object, which the policy does not concern.
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        digest(script),
        digest(style)
    );
    (page.into(), policy)
});

/// The page.
pub(super) fn page() -> Response<Content> {
    let (page, policy) = &*PAGE;
    let mut response = whole("text/html; charset=utf-8", page.clone());
    let headers = response.headers_mut();
    // It is made of ASCII.
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// The page's own script, with a document that is nothing but what it uses of one.
    #[test]
    fn the_script_does_what_the_page_promises() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/console/ui/tests.mjs");
        let mut node = Command::new("node");
        let ran = node.args(["--test-reporter=tap", "--test", script]).output();
        let ran = ran.unwrap_or_else(|err| panic!("node: {err}; run tests/host/prereqs.sh"));
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    }
}
