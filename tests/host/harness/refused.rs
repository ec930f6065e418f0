//! What everybody is told of a start that failed. Owner: the test. Invariant: the same cause is looked for in each of the four
//! places where people look.

use testhost::{Host, Look, wait_for};

use super::http::get;
use super::serve::{FIRST, count, property, show_status, wait_property};

/// A cause, and how it is told.
#[derive(Debug)]
pub struct Refusal {
    /// Exit status of the daemon.
    pub status: i32,
    /// The stable word.
    pub word: &'static str,
    /// What the message says.
    pub says: &'static [&'static str],
}

/// A client that waits on the socket, `systemctl status`, the exit status and the journal all tell the cause; the sockets stay.
pub fn refused(host: &Host, refusal: &Refusal) {
    let answer = get(host, "/v1/models").unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], "startup_failed", "{error}");
    assert_eq!(error["type"], "server_error", "{error}");
    assert!(answer.header("retry-after").is_some(), "{}", answer.head);
    let message = error["message"].as_str().unwrap_or_default();
    let begins = format!("hostler could not start ({}): ", refusal.word);
    assert!(message.starts_with(&begins), "{message}");

    // The last start may have ended or be under way again; its end is what counts.
    let ended = refusal.status.to_string();
    wait_property(host, "hostler.service", "ExecMainStatus", FIRST, |seen| seen == ended).unwrap();
    let begins = format!("Failed ({}): ", refusal.word);
    let seen = |text: &str| text.starts_with(&begins);
    wait_property(host, "hostler.service", "StatusText", FIRST, seen).unwrap();
    let shown = show_status(host, "hostler.service").unwrap();
    assert!(shown.contains("Status: \""), "{shown}");

    let journal = host.journal("hostler.service").unwrap();
    let logged = format!("start failed ({}, exit status {}): ", refusal.word, refusal.status);
    assert!(journal.contains(&logged), "{logged} is not in\n{journal}");
    for text in refusal.says {
        assert!(message.contains(text), "{text:?} is not in {message}");
        assert!(journal.contains(text), "{text:?} is not in\n{journal}");
    }
    let failed = host.failed_units().unwrap();
    assert!(!failed.contains(".socket"), "{failed}");
}

/// Once the cause is gone a next start succeeds, and nothing has to be started by hand. Whoever comes before is told the cause
/// still, but never turned away without an answer.
pub fn recovers(host: &Host) {
    wait_for("the daemon to start by itself", FIRST, || {
        let answer = get(host, "/health")?;
        if answer.status == 200 {
            return Ok(Look::Done(()));
        }
        assert_eq!((answer.status, answer.failure.as_str()), (503, ""), "{answer:?}");
        assert_eq!(answer.json()["error"]["code"], "startup_failed", "{answer:?}");
        Ok(Look::NotYet(answer.body))
    })
    .unwrap();
    count(host).check();
    assert_eq!(property(host, "hostler.service", "ActiveState").unwrap(), "active");
    assert_eq!(host.failed_units().unwrap(), "");
}
