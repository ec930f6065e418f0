//! Rows of the list of faults that podman, systemd or the kernel decide: each is injected for real, and each has to mend without
//! a person. The numbers are those of the list.

mod engines;
mod forgets;
mod load;
mod memory;
mod podman;
mod systemd;

use std::time::Duration;

use testhost::{Host, Look, wait_for};

use crate::harness::{Answer, count_request, post};

/// Asks the counting model until it is answered: after a fault a client may be told to come again.
fn answered(host: &Host, tokens: usize) -> Answer {
    wait_for("an answer after a fault", Duration::from_secs(90), || {
        let body = count_request("count", tokens);
        let answer = post(host, "/v1/chat/completions", &body).wait();
        let retry =
            matches!(answer.status, 502 | 503) && answer.json()["error"]["code"].is_string();
        assert!(answer.status == 200 || retry, "neither an answer nor a clear error: {answer:?}");
        Ok(if answer.status == 200 { Look::Done(answer) } else { Look::NotYet(answer.body) })
    })
    .unwrap()
}
