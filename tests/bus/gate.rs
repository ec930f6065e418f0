//! A polkit as it should not be, and a bus that is late: what is denied, what is asked, and what is said.
#![expect(clippy::disallowed_types, reason = "the macro of D-Bus interfaces names HashMap")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hostler::control::bus::{self, Bus};
use hostler::control::polkit::{Gate, Patience};
use hostler::control::{Context, Facts};
use hostler::supervisor::handle::{Ask, Handle, Verb};
use hostler::types::{Fault, FaultCode, Status};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use zbus::OwnedVariant;
use zbus::proxy::MethodFlags;

use crate::cli::next;
use crate::house::{Daemon, House, Root, status};

/// What polkit says of a call.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Yes,
    No,
    /// A person would have to prove who they are.
    Challenge,
    Never,
}

/// What polkit was asked: the subject's kind, the action, the flags, and how many details there were.
type Asked = (String, String, u32, usize);

/// A stand-in for polkit: the same interface, and answers by script.
#[derive(Clone)]
struct Authority {
    answer: Answer,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// A permit for each question that was taken back.
    cancelled: Arc<Semaphore>,
}

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    async fn check_authorization(
        &self,
        subject: (String, BTreeMap<String, OwnedVariant>),
        action: String,
        details: BTreeMap<String, String>,
        flags: u32,
        _cancellation: String,
    ) -> (bool, bool, BTreeMap<String, String>) {
        self.asked.lock().unwrap().push((subject.0, action, flags, details.len()));
        match self.answer {
            Answer::Yes => (true, false, BTreeMap::new()),
            Answer::No => (false, false, BTreeMap::new()),
            Answer::Challenge => (false, true, BTreeMap::new()),
            Answer::Never => std::future::pending().await,
        }
    }

    fn cancel_check_authorization(&self, _cancellation: String) {
        self.cancelled.add_permits(1);
    }
}

/// Short, so that nobody waits for long.
const PATIENCE: Patience =
    Patience { rules: Duration::from_millis(300), person: Duration::from_millis(900) };

/// A house whose gate is a polkit that answers so, and polkit's own connection.
async fn guarded(answer: Answer) -> (House, Authority, zbus::Connection) {
    guarded_for(answer, PATIENCE).await
}

async fn guarded_for(answer: Answer, patience: Patience) -> (House, Authority, zbus::Connection) {
    let daemon = Daemon::start("unix:tmpdir=/tmp");
    let (asked, cancelled) = (Arc::default(), Arc::new(Semaphore::new(0)));
    let authority = Authority { answer, asked, cancelled };
    let polkit = zbus::connection::Builder::address(daemon.address.as_str())
        .name("org.freedesktop.PolicyKit1")
        .serve_at("/org/freedesktop/PolicyKit1/Authority", authority.clone())
        .build()
        .await
        .unwrap();
    (House::on(daemon, status(), Gate::Polkit(patience)).await, authority, polkit)
}

/// Asks for a load as a program does: `busctl` keeps the text of a refusal to itself.
async fn load(house: &House, interactive: bool) -> Result<(), String> {
    let client = house.client().await;
    let manager = "org.hostler1.Manager";
    let proxy = zbus::Proxy::new(&client, "org.hostler1", "/org/hostler1", manager).await.unwrap();
    let flags =
        if interactive { MethodFlags::ALLOW_INTERACTIVE_AUTH } else { MethodFlags::empty() };
    let body = ("small", BTreeMap::<&str, zbus::Variant<'_>>::new());
    let job: zbus::Result<Option<zbus::OwnedObjectPath>> =
        proxy.call_with_flags("Load", flags, &body).await;
    job.map(drop).map_err(|err| err.to_string())
}

fn asked(authority: &Authority) -> Vec<Asked> {
    std::mem::take(&mut *authority.asked.lock().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn polkit_is_asked_for_the_caller_the_action_and_with_a_person_only_where_one_may_be_asked() {
    let (mut house, authority, _polkit) = guarded(Answer::Yes).await;
    for (interactive, flags) in [(false, 0), (true, 1)] {
        load(&house, interactive).await.unwrap();
        let (_, verb, _) = next(&mut house).await;
        assert!(matches!(verb, Verb::Load(_)));
        let load = ("system-bus-name".to_owned(), "org.hostler1.load-model".to_owned(), flags, 0);
        assert_eq!(asked(&authority), [load]);
    }
    // Who makes busy models leave needs that right too.
    let evict = ["--allow-interactive-authorization=no", "call", "org.hostler1", "/org/hostler1"];
    let rest = ["org.hostler1.Manager", "Load", "sa{sv}", "small", "1", "evict", "s", "any"];
    house.busctl(&[&evict[..], &rest].concat()).await.unwrap();
    let actions: Vec<String> = asked(&authority).into_iter().map(|asked| asked.1).collect();
    assert_eq!(actions, ["org.hostler1.load-model", "org.hostler1.evict"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_the_status_and_who_may_read_logs_what_an_engine_said_last() {
    for (answer, seen) in [(Answer::Yes, true), (Answer::No, false), (Answer::Challenge, false)] {
        let (house, authority, _polkit) = guarded(answer).await;
        let interactive = ["--allow-interactive-authorization=yes"];
        let get = ["call", "org.hostler1", "/org/hostler1", "org.hostler1.Manager", "GetStatus"];
        let get = [&interactive[..], &get].concat();
        house.busctl(&get).await.unwrap();
        assert!(asked(&authority).is_empty(), "no engine has said anything");
        house.status.send_modify(|status| {
            let mut next = Status::clone(status);
            let fault = Fault::new(FaultCode::EngineExited, "exit code 1");
            next.models[1].error = Some(fault.with_log(vec!["what a client sent".to_owned()]));
            *status = Arc::new(next);
        });
        let text = house.busctl(&get).await.unwrap();
        assert!(text.contains("exit code 1"), "{text}");
        assert_eq!(text.contains("what a client sent"), seen, "{answer:?}: {text}");
        // Nobody is asked for a password in order to look.
        let logs = ("system-bus-name".to_owned(), "org.hostler1.read-logs".to_owned(), 0, 0);
        assert_eq!(asked(&authority), [logs]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_whether_a_password_would_help() {
    let (house, _, _polkit) = guarded(Answer::No).await;
    for interactive in [false, true] {
        let error = load(&house, interactive).await.unwrap_err();
        assert!(error.contains("polkit does not allow it"), "{error}");
    }
    let (house, _, _polkit) = guarded(Answer::Challenge).await;
    let error = load(&house, false).await.unwrap_err();
    assert!(error.contains("needs authentication"), "{error}");
    // The person was asked, and did not prove it.
    let error = load(&house, true).await.unwrap_err();
    assert!(error.contains("polkit does not allow it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polkit_that_answers_late_denies_and_is_told_that_nobody_waits() {
    let (mut house, authority, _polkit) = guarded(Answer::Never).await;
    for (interactive, patience) in [(false, PATIENCE.rules), (true, PATIENCE.person)] {
        let began = Instant::now();
        let error = load(&house, interactive).await.unwrap_err();
        assert!(error.contains(&format!("polkit gave no answer within {patience:?}")), "{error}");
        assert!(began.elapsed() >= patience);
        let told = tokio::time::timeout(Duration::from_secs(20), authority.cancelled.acquire());
        told.await.unwrap().unwrap().forget();
        assert_eq!(authority.cancelled.available_permits(), 0);
    }
    // Nothing was done, and whoever only reads is not kept.
    house.manager(&["ListModels"]).await.unwrap();
    while let Ok(ask) = house.asks.try_recv() {
        assert!(matches!(ask, Ask::Trouble { .. }), "{ask:?}");
    }
    assert_eq!(house.manager(&["ListJobs"]).await.unwrap(), "a(osssd) 0");
}

/// A program of anybody's, with an agent of its own that never answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_dialog_that_nobody_answers_keeps_no_other_call_waiting() {
    let forever = Duration::from_secs(600);
    let patience = Patience { rules: forever, person: forever };
    let (mut house, authority, _polkit) = guarded_for(Answer::Never, patience).await;
    let client = house.client().await;
    let (path, model) = ("/org/hostler1/model/small", "org.hostler1.Model");
    let call = async |interface: &'static str, method: &'static str, set: bool| {
        let proxy = zbus::Proxy::new(&client, "org.hostler1", path, interface).await.unwrap();
        let flags = MethodFlags::ALLOW_INTERACTIVE_AUTH;
        let answer: zbus::Result<Option<()>> = if set {
            let body = (model, "Pinned", zbus::Variant::from(true));
            proxy.call_with_flags(method, flags, &body).await
        } else {
            proxy.call_with_flags(method, flags, &()).await
        };
        answer.unwrap_err().to_string()
    };
    // The property asks nobody for a password, and polkit only for a moment.
    let set = call("org.freedesktop.DBus.Properties", "Set", true);
    let error = tokio::time::timeout(Duration::from_secs(20), set).await.unwrap();
    assert!(error.contains("the methods Pin and Unpin"), "{error}");
    let asked_for = |flags| {
        let action = "org.hostler1.load-model".to_owned();
        [("system-bus-name".to_owned(), action, flags, 0)]
    };
    assert_eq!(asked(&authority), asked_for(0));
    // The methods do; meanwhile everybody else is served, also where objects come and go.
    let pin = call(model, "Pin", false);
    let others = async {
        while asked(&authority) != asked_for(1) {
            tokio::task::yield_now().await;
        }
        house.status.send_modify(|status| {
            let mut next = Status::clone(status);
            next.models.truncate(1);
            *status = Arc::new(next);
        });
        while house.manager(&["ListModels"]).await.unwrap().contains("small") {}
        house.manager(&["GetStatus"]).await.unwrap();
    };
    tokio::select! {
        error = pin => panic!("{error}"),
        done = tokio::time::timeout(Duration::from_secs(20), others) => done.unwrap(),
    }
    while let Ok(ask) = house.asks.try_recv() {
        assert!(matches!(ask, Ask::Trouble { .. }), "{ask:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_polkit_nobody_may() {
    let house = House::with(status(), Gate::Polkit(PATIENCE)).await;
    let error = load(&house, true).await.unwrap_err();
    assert!(error.contains("install polkitd, or start polkit.service"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_was_never_there_is_a_problem_until_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:path={}", dir.path().join("bus").display());
    let (handle, mut asks, _status) = Handle::scripted(status());
    let facts = Facts { version: String::new(), podman: String::new(), listeners: Vec::new() };
    let uid = rustix::process::geteuid().as_raw();
    let root = Arc::new(Root::default());
    let context = Context::new(handle, root.clone(), facts, Gate::Owner { uid });
    let (stop, (first, ready)) = (CancellationToken::new(), oneshot::channel());
    let run = bus::run(context, Bus::Address(address.clone()), stop.clone(), first);
    let control = tokio::spawn(run);
    // The daemon does not wait for it to be ready.
    tokio::time::timeout(Duration::from_secs(20), ready).await.unwrap().unwrap();
    let mut trouble = async || loop {
        let ask = tokio::time::timeout(Duration::from_secs(30), asks.recv()).await.unwrap();
        if let Some(Ask::Trouble { code: "bus_missing", message }) = ask {
            return message;
        }
    };
    let said = trouble().await.unwrap();
    assert!(said.contains("there is no control over the bus, retrying"), "{said}");
    let daemon = Daemon::start(&address);
    // It may have tried in vain once more meanwhile.
    while trouble().await.is_some() {}
    let client = zbus::connection::Builder::address(daemon.address.as_str()).build().await.unwrap();
    let bus = zbus::fdo::DBusProxy::new(&client).await.unwrap();
    assert!(bus.name_has_owner("org.hostler1".try_into().unwrap()).await.unwrap());
    // Whoever wrote a file meanwhile had nobody to tell.
    let caught_up = async {
        while root.asked.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), caught_up).await.unwrap();
    assert_eq!(*root.asked.lock().unwrap(), ["catch up"]);
    stop.cancel();
    control.await.unwrap();
}
