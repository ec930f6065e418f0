//! The daemon goes and comes back: models stay, requests wait, nobody is refused.

use std::time::{Duration, Instant};

use nvidia_ml::{Gpu, Script};

use crate::harness::{
    COUNT, Counting, Fake, SOON, Scene, containers, count, count_a_little, count_request, engine,
    events, nothing_left, post, property, served, serving, skip_unless_wanted, wait_busy,
    wait_property,
};

/// Kept, whatever happens to the daemon.
fn kept() -> String {
    format!("{COUNT}\n[policy]\non_stop = \"keep\"\n")
}

#[test]
fn a_killed_daemon_finds_its_containers_again() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let (before, pid) = (containers(&host).unwrap(), engine(&host).unwrap());
    // A second one would take the first's containers for its own, or end them.
    let again = "runuser -u hostler -- /usr/libexec/hostler/hostlerd --listen 127.0.0.1:9000 2>&1; echo status=$?";
    let again = host.root(again).unwrap();
    assert!(again.contains("another hostlerd has the directory /run/hostler/engines"), "{again}");
    assert!(again.ends_with("status=11\n"), "{again}");
    for round in 1..=2 {
        host.root("systemctl kill --signal=SIGKILL --kill-whom=main hostler.service").unwrap();
        // These come while nobody serves; each is answered, none refused or reset.
        let clients: Vec<_> = (0..5).map(|_| count_a_little(&host)).collect();
        clients.into_iter().for_each(Counting::check);
        assert_eq!(containers(&host).unwrap(), before, "round {round}");
        assert_eq!(engine(&host).unwrap(), pid, "round {round}");
        let restarts = round.to_string();
        assert_eq!(property(&host, "hostler.service", "NRestarts").unwrap(), restarts);
    }
    assert_eq!(events(&host, "count").unwrap(), ["create", "init", "start"]);
    let journal = host.journal("hostler.service").unwrap();
    assert_eq!(journal.matches("adopting the running container").count(), 2, "{journal}");
    // What was adopted is stopped as well as what was started.
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
    assert_eq!(containers(&host).unwrap(), []);
}

#[test]
fn a_restart_keeps_the_models_that_it_is_told_to_keep_and_queues_the_requests() {
    skip_unless_wanted!();
    let host = serving(&kept()).unwrap();
    count(&host).check();
    let (before, pid) = (containers(&host).unwrap(), engine(&host).unwrap());
    let main = property(&host, "hostler.service", "MainPID").unwrap();
    let mut restart = host.command("systemctl");
    let mut restart = restart.args(["restart", "hostler.service"]).spawn().unwrap();
    let mut clients = Vec::new();
    while restart.try_wait().unwrap().is_none() {
        if clients.len() < 6 {
            clients.push(count_a_little(&host));
        }
    }
    assert!(restart.wait().unwrap().success());
    assert!(!clients.is_empty());
    clients.into_iter().for_each(Counting::check);
    assert_ne!(property(&host, "hostler.service", "MainPID").unwrap(), main);
    assert_eq!((containers(&host).unwrap(), engine(&host).unwrap()), (before.clone(), pid));

    // A stop keeps it too; the next start adopts it, also if it dies meanwhile.
    host.root("systemctl stop hostler.service").unwrap();
    assert_eq!((containers(&host).unwrap(), engine(&host).unwrap()), (before.clone(), pid));
    count(&host).check();
    assert_eq!(containers(&host).unwrap(), before);
    host.root("systemctl stop hostler.service; kill -9 $(pgrep --exact llama-server)").unwrap();
    count(&host).check();
    let after = containers(&host).unwrap();
    assert_eq!(after.len(), 1, "{after:?}");
    assert_ne!(after, before);
}

#[test]
fn a_restart_drains_running_streams() {
    skip_unless_wanted!();
    let host = serving(&kept()).unwrap();
    count(&host).check();
    // On their way when the restart comes.
    let clients: Vec<_> = (0..3).map(|_| count(&host)).collect();
    wait_busy(&host, "count", SOON).unwrap();
    host.root("systemctl restart hostler.service").unwrap();
    clients.into_iter().for_each(Counting::check);
}

#[test]
fn a_stop_follows_on_stop_and_a_restart_keeps_always() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let (before, pid) = (containers(&host).unwrap(), engine(&host).unwrap());
    for verb in ["restart", "try-restart", "reload-or-restart"] {
        host.root(&format!("systemctl {verb} hostler.service")).unwrap();
        count(&host).check();
        assert_eq!(
            (containers(&host).unwrap(), engine(&host).unwrap()),
            (before.clone(), pid),
            "{verb}"
        );
    }
    host.root("systemctl stop hostler.service").unwrap();
    assert_eq!(containers(&host).unwrap(), []);
    nothing_left(&host);
    // By a signal from elsewhere it is a stop too.
    count(&host).check();
    let main = property(&host, "hostler.service", "MainPID").unwrap();
    host.root(&format!("kill {main}; while kill -0 {main} 2>/dev/null; do sleep 0.05; done"))
        .unwrap();
    assert_eq!(containers(&host).unwrap(), []);
}

#[test]
fn a_changed_model_is_not_adopted() {
    skip_unless_wanted!();
    let host = serving(&kept()).unwrap();
    count(&host).check();
    let before = containers(&host).unwrap();
    crate::harness::config(&host, &kept().replace("4096", "8192")).unwrap();
    host.root("systemctl restart hostler.service").unwrap();
    count(&host).check();
    let after = containers(&host).unwrap();
    assert_eq!(after.len(), 1, "{after:?}");
    assert_ne!(after, before);
    let args = host.root("tr '\\0' ' ' </proc/$(pgrep --exact llama-server)/cmdline").unwrap();
    assert!(args.contains("-c 8192"), "{args}");
    let said = |text: &str| text.starts_with("1 of 1 models ready (count)");
    wait_property(&host, "hostler.service", "StatusText", SOON, said).unwrap();
}

#[test]
fn a_reboot_lets_a_stream_and_a_slow_engine_end_before_podman_goes() {
    skip_unless_wanted!();
    let script =
        Script::with_gpus(vec![Gpu::new("GPU-aaaaaaaa-0000-0000-0000-000000000000", 8 << 30)]);
    let slow = Fake::new("slow", "1GiB").env("TERM", "slow:4s").env("RATE", "5");
    let mut scene = Scene::new(&script, "", &[slow]).unwrap();
    scene.serve("slow");
    let stream = post(&scene.host, "/v1/chat/completions", &count_request("slow", 20));
    wait_busy(&scene.host, "slow", SOON).unwrap();
    let began = Instant::now();
    scene.host.reboot().unwrap();
    served(&stream.wait());
    // Less than the drain may take, not to speak of what was waited for podman after it.
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    let journal = "journalctl --boot=-1 --unit=hostler.service --output=cat --no-pager";
    let journal = scene.host.root(journal).unwrap();
    assert!(journal.contains(" is gone") && !journal.contains("could not be stopped"), "{journal}");
}
