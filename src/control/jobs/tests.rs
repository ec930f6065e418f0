//! Which jobs there may be, and which are remembered.

use super::*;

fn add(jobs: &Jobs, kind: Kind, model: &str) -> Result<u32, Code> {
    let model = (!model.is_empty()).then(|| model.parse().unwrap());
    jobs.add(kind, model, Moment::START).map(|record| record.id).map_err(|error| error.code)
}

/// `hostler load --timeout 50s big` every minute, which leaves a job behind each time that there is no room.
#[test]
fn whoever_asks_again_and_again_keeps_nobody_from_making_room() {
    let jobs = Jobs::default();
    for _ in 0..ALIKE_MAX {
        add(&jobs, Kind::Load, "big").unwrap();
    }
    assert_eq!(add(&jobs, Kind::Load, "big"), Err(Code::QueueFull));
    for other in [Kind::Measure, Kind::Wake, Kind::Unload, Kind::Sleep] {
        add(&jobs, other, "big").unwrap();
    }
    add(&jobs, Kind::UnloadAll, "").unwrap();
    let last = add(&jobs, Kind::Load, "small").unwrap();
    // The end of one makes room for one.
    jobs.end(1, State::Cancelled);
    assert_eq!(add(&jobs, Kind::Load, "big"), Ok(last + 1));
    assert_eq!(add(&jobs, Kind::Load, "big"), Err(Code::QueueFull));
}

#[test]
fn the_refusal_says_of_what_there_are_too_many() {
    let jobs = Jobs::default();
    let add = || jobs.add(Kind::UnloadAll, None, Moment::START);
    (0..ALIKE_MAX).for_each(|_| drop(add().unwrap()));
    let refused = add().unwrap_err().message;
    assert!(refused.ends_with("already that unload all models"), "{refused}");
}

#[test]
fn all_loads_together_are_bounded_and_leave_unloads_their_own_bound() {
    for (fills, others) in [(Kind::Load, Kind::Unload), (Kind::Unload, Kind::Load)] {
        let jobs = Jobs::default();
        for at in 0..RUNNING_MAX {
            add(&jobs, fills, &format!("m{}", at / ALIKE_MAX)).unwrap();
        }
        assert_eq!(add(&jobs, fills, "last"), Err(Code::QueueFull));
        add(&jobs, others, "last").unwrap();
    }
}

/// A load of a busy model may take longer than many others one after the other.
#[test]
fn whose_end_is_news_is_not_forgotten_for_it() {
    let jobs = Jobs::default();
    let long = add(&jobs, Kind::Load, "big").unwrap();
    let last = long + 1 + KEPT as u32;
    for id in long + 1..=last {
        assert_eq!(add(&jobs, Kind::Load, "small"), Ok(id));
        let forgotten = jobs.end(id, State::Done);
        assert_eq!(forgotten, if id == last { vec![long + 1] } else { vec![] }, "{id}");
    }
    assert_eq!(jobs.end(long, State::Done), [long + 2], "who ended first");
    assert_eq!(jobs.get(long).map(|job| job.state), Some(State::Done));
    assert_eq!(jobs.all().len(), KEPT);
}

/// An object that is set for ever: all the while zbus keeps the tree of objects locked.
#[derive(Debug)]
struct Stuck(Arc<tokio::sync::Notify>);

#[zbus::interface(name = "org.example.Stuck")]
impl Stuck {
    #[zbus(property)]
    fn value(&self) -> bool {
        false
    }

    #[zbus(property)]
    async fn set_value(&self, _value: bool) -> zbus::Result<()> {
        self.0.notify_one();
        std::future::pending().await
    }
}

#[derive(Debug)]
struct NoHost;

impl crate::control::Host for NoHost {
    fn validate(&self) -> crate::control::HostFuture<'_, Vec<crate::types::Check>> {
        Box::pin(async { Vec::new() })
    }

    fn reload(&self) -> crate::control::HostFuture<'_, Result<crate::control::Reloaded, String>> {
        Box::pin(async { Ok(crate::control::Reloaded::default()) })
    }

    fn catch_up(&self) -> crate::control::HostFuture<'_, ()> {
        Box::pin(async {})
    }

    fn open_log(
        &self,
        _instance: crate::types::InstanceId,
        _lines: Option<usize>,
        _follow: bool,
    ) -> crate::control::HostFuture<'_, Result<std::os::fd::OwnedFd, String>> {
        Box::pin(async { Err(String::new()) })
    }

    fn externals(&self) -> Vec<crate::types::ExternalStatus> {
        Vec::new()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_hangs_delays_no_work_and_the_call_for_a_moment() {
    use std::io::BufRead as _;
    let mut daemon = std::process::Command::new("dbus-daemon")
        .args(["--session", "--nofork", "--nopidfile", "--print-address"])
        .arg("--address=unix:tmpdir=/tmp")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|err| panic!("dbus-daemon: {err}; run tests/host/prereqs.sh"));
    let mut address = String::new();
    let said = daemon.stdout.take().unwrap();
    std::io::BufReader::new(said).read_line(&mut address).unwrap();
    let connect = || zbus::connection::Builder::address(address.trim());
    let set = Arc::new(tokio::sync::Notify::new());
    let bus = connect().serve_at("/stuck", Stuck(set.clone())).build().await.unwrap();
    let client = connect().build().await.unwrap();
    let name = bus.unique_name().unwrap().to_string();
    let locks = tokio::spawn(async move {
        let proxy = zbus::Proxy::new(&client, name, "/stuck", "org.example.Stuck").await.unwrap();
        proxy.set_property("Value", true).await
    });
    set.notified().await;

    let (handle, _asks, _status) = crate::supervisor::handle::Handle::scripted(Default::default());
    let gate = crate::control::polkit::Gate::Owner { uid: 0 };
    let context = Context::new(handle, Arc::new(NoHost), Default::default(), gate);
    context.jobs.set_bus(Some(bus));
    let (does, done) = oneshot::channel();
    let work = |_| async { does.send(()).map_err(|()| Error::new(Code::Internal, "")) };
    let begun = context.begin(Kind::Load, None, work);
    let within = Duration::from_secs(20);
    // First without anybody who waits for the number to be told.
    tokio::pin!(begun);
    tokio::select! {
        biased;
        id = &mut begun => panic!("{id:?}"),
        done = tokio::time::timeout(within, done) => done.unwrap().unwrap(),
    }
    assert_eq!(tokio::time::timeout(within, begun).await.unwrap(), Ok(1));
    assert!(!locks.is_finished());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
