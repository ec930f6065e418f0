//! The journal's catalogue: what each kind of line means, by an ID that never changes.
//!
//! Purpose: `journalctl MESSAGE_ID=…` finds a kind of line whatever its text, and `journalctl -x` explains it. From this list
//! `units/catalog/hostler.catalog` and the table in `docs/journal.md` are made. Owner: nobody; data. Invariant: an ID is never used for
//! another meaning; a kind that is gone takes its ID with it.

/// One kind of line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The line's field `kind`.
    pub kind: &'static str,
    /// 128 bits, 32 hexadecimal digits.
    pub id: &'static str,
    /// What has happened, in a few words.
    pub subject: &'static str,
    /// What it means and what can be done.
    pub text: &'static str,
}

const fn message(
    kind: &'static str,
    id: &'static str,
    subject: &'static str,
    text: &'static str,
) -> Message {
    Message { kind, id, subject, text }
}

/// All kinds.
pub const ALL: &[Message] = &[
    message(
        "daemon_ready",
        "70a153c7001740a39841c4820f63fde8",
        "The daemon serves",
        "All checks have passed, and requests are taken. Which models are configured is in `hostler list`.",
    ),
    message(
        "daemon_start_failed",
        "43250b7454644bfe9de9ff8cec511844",
        "The daemon could not start",
        "A check failed whose cause has to be mended; the line names it, the thing it is about, and the fix. `hostler doctor` makes the same checks.",
    ),
    message(
        "daemon_stopping",
        "30b70d74af2e466fa5d404ea367e0539",
        "The daemon stops",
        "Requests that run have [policy] drain_timeout; then the models are stopped or kept, as on_stop says. A restart always keeps them.",
    ),
    message(
        "log_lines_lost",
        "5023b71e7bdd4cc9a677781363045aea",
        "Log lines were lost",
        "Nobody took them in time, or at all: the journal hangs or is being started anew. Requests do not wait for it. HOSTLER_LINES says how many.",
    ),
    message(
        "requests_untold",
        "f4a030bf43d342cdac72a3c1f8cb2088",
        "Requests have no line of their own",
        "There were more a second than [log] request_lines; the line says how many, in the last 10 s at most, and how they ended. The metrics count them like all others. HOSTLER_LINES says how many, too.",
    ),
    message(
        "reloaded",
        "154a5a8cface471598abf2f475c1837a",
        "The configuration was read again",
        "What is different is in force, but for what the line and `hostler status` name as waiting for a restart.",
    ),
    message(
        "reload_failed",
        "8db1ad3e41614eae9ee7ea7f2372efa8",
        "The configuration was not read again",
        "A file is wrong; the line names it and the place. Everything stays as it was.",
    ),
    message(
        "problem",
        "fed0dd55426f47ddbbbc647bcbfd6458",
        "Something is wrong",
        "The same stands in GET /ready and in `hostler status` for as long as it lasts. The line has the cause and the fix.",
    ),
    message(
        "problem_over",
        "ca30da464ee545fe9e9d3e0f89f8c08e",
        "What was wrong is over",
        "It needs no hand any more.",
    ),
    message(
        "request",
        "d87983d1d5c94cf89f690eed3276fa9d",
        "A request is over",
        "HOSTLER_STATUS is its HTTP status, HOSTLER_QUEUE_MS its wait, HOSTLER_FIRST_BYTE_MS and HOSTLER_TOTAL_MS its times; HOSTLER_ABORTED_BY is who broke it off. All that its model's load wrote has the same HOSTLER_REQUEST_ID, if it was the first to wait for it, and the same HOSTLER_INSTANCE in any case.",
    ),
    message(
        "job",
        "129154dc86a34afbae8ed6d95b88a93d",
        "A job of an operator's is over",
        "What `hostler` or D-Bus was asked to do and took long; HOSTLER_JOB is its number.",
    ),
    message(
        "waiting",
        "e4223742ca8c41a1aad6c48dd6842884",
        "A model waits for room",
        "HOSTLER_MODEL is wanted and does not fit now; the line names who holds the memory and why they stay. `hostler why @HOSTLER_MODEL@` says it as it is now.",
    ),
    message(
        "starting",
        "38538ab4ecd34ad68fe61ebcac4debf7",
        "A model's container is started",
        "On the devices of HOSTLER_GPU. Nothing else starts or stops there meanwhile.",
    ),
    message(
        "pulling",
        "2852f9e230094c01abb8f088930f7cde",
        "A model's image is pulled",
        "It was not in the storage. Nothing is held on a device meanwhile.",
    ),
    message(
        "planned_again",
        "7ef6736c3c4f4c229014c6637fbf89ea",
        "A model is planned again",
        "Its image is here now, or is another one than the plan was made for.",
    ),
    message(
        "loading",
        "3c37b5edd77d44db89be914c9db6d1aa",
        "A model's engine loads",
        "Its container runs and its restrictions were verified. `hostler logs @HOSTLER_MODEL@` shows what the engine writes.",
    ),
    message(
        "adopted",
        "c8d2ac51db7f4131ab5980ad53d5a8f7",
        "A running model was taken over",
        "An earlier daemon had started it; it was not loaded again.",
    ),
    message(
        "ready",
        "66147ec7b91846f2b1e08fbe9e33e1e3",
        "A model is ready",
        "It answers requests. HOSTLER_TOOK_MS is the time from the order; one that was taken over has none.",
    ),
    message(
        "failed",
        "1fa41468013c4ad9a572bfec5dca8c04",
        "A model failed",
        "Its start, or the running engine. HOSTLER_REASON is the cause's word (docs/troubleshoot.md); what the engine wrote last follows. It is tried again on demand, at the earliest after HOSTLER_RETRY_MS.",
    ),
    message(
        "stopping",
        "ea133605572641feb66f96a2e1c51c8d",
        "A model is stopped",
        "HOSTLER_REASON says why: idle, evicted for another model, memory pressure, an operator, the configuration, the end of the daemon.",
    ),
    message(
        "stopped",
        "5a3b823a7b0a49babffe077bbf1cdd0f",
        "A model is gone",
        "No process of it is left and podman does not know it any more. Its memory is free once a reading shows it.",
    ),
    message(
        "stop_failed",
        "d5ba5b64eed04dc2a93c0715a5b89425",
        "A model could not be stopped",
        "It is tried again. Look at podman and at the process that does not die: `dmesg`, `ps`.",
    ),
    message(
        "yielding",
        "9a1e7adc2bdf4a1d9a1883b7f1facb24",
        "A busy model makes way",
        "It takes no new requests, and leaves when those that run are over: for another, or to start as a reload has configured it.",
    ),
    message(
        "spared",
        "2a1457cf295b4a63a1cafa26246693b5",
        "A model need not leave any more",
        "Nobody waits for its place, it is as it is configured again, or its last request does not end: it serves on.",
    ),
    message(
        "measured",
        "1d8661b1dc084ee4bd2385add7771195",
        "A model's memory was measured",
        "From now on it is planned by this number.",
    ),
    message(
        "unmeasured",
        "c03c6e89f9bf4d2099ce6c23181f7a32",
        "A model's memory could not be measured",
        "It is tried again when it is loaded next.",
    ),
    message(
        "falling_asleep",
        "7995248374f44ce686cf9438b2dcae95",
        "A model is put to sleep",
        "Its weights stay in the host's memory, or on the disk at level 2.",
    ),
    message(
        "asleep",
        "a726687784ba455b92d02a54e42fd9f5",
        "A model sleeps",
        "It holds next to no device memory; the next request wakes it.",
    ),
    message(
        "sleep_failed",
        "14b25725570f47cba765faba4c5dc553",
        "A model did not fall asleep",
        "It was stopped instead, and starts anew on demand.",
    ),
    message(
        "waking",
        "f121ae00c3c5434dac0113abd5b1af9f",
        "A model wakes",
        "It has all its memory reserved.",
    ),
    message(
        "awake",
        "2a3227066c814b6e9ddc554320e70adf",
        "A model woke",
        "It answered its canary as after its load, and serves.",
    ),
    message(
        "wake_failed",
        "2f15ebdf21b14caebbda567d591ae6bc",
        "A model did not wake well",
        "It was stopped, and starts anew on demand; no client saw it.",
    ),
    message(
        "sleepless",
        "54e606b20eee4d5abbf3d57c5dbe6234",
        "A model will not be put to sleep",
        "It failed too often, or gives no answer that a wake could be judged by. It is stopped instead.",
    ),
];

/// The message of a kind; `None`: it has none.
#[must_use]
pub fn of(kind: &str) -> Option<&'static Message> {
    ALL.iter().find(|message| message.kind == kind)
}

/// The catalogue as systemd reads it.
#[must_use]
pub fn file() -> String {
    let mut text = String::from("# Made from src/observe/catalog.rs.\n");
    for Message { id, subject, text: body, .. } in ALL {
        text += &format!(
            "\n-- {id}\nSubject: {subject}\nDefined-By: Hostler\nDocumentation: man:hostlerd(8)\n\n{body}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_and_kinds_are_there_once() {
        let ids: BTreeSet<&str> = ALL.iter().map(|m| m.id).collect();
        let kinds: BTreeSet<&str> = ALL.iter().map(|m| m.kind).collect();
        assert_eq!((ids.len(), kinds.len()), (ALL.len(), ALL.len()));
        for Message { kind, id, subject, text } in ALL {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            assert!(id.len() == 32 && id.bytes().all(hex), "{kind}");
            assert!(
                !subject.ends_with('.') && text.ends_with('.') && !text.contains('\n'),
                "{kind}"
            );
        }
    }
}
