//! Models that run elsewhere: seen on the bus and by the operator's program, and refused where only this host's models will do.

use hostler::supervisor::handle::Ask;
use hostler::types::{ExternalHealth, ExternalStatus, Moment};

use crate::cli::run;
use crate::house::{House, status};

/// The host of `status` and two models elsewhere, of which one is dead.
async fn house() -> House {
    let house = House::open(status()).await;
    let well = ExternalStatus {
        name: "far/away".parse().unwrap(),
        aliases: vec!["cloud".parse().unwrap()],
        url: "https://api.example.org/team".into(),
        health: ExternalHealth::Well,
        why: None,
        since: Some(Moment::from_secs(5)),
    };
    let dead = ExternalStatus {
        name: "far/dead".parse().unwrap(),
        aliases: vec![],
        url: "http://192.0.2.7:8000".into(),
        health: ExternalHealth::Unwell,
        why: Some("it cannot be reached".into()),
        since: None,
    };
    *house.root.externals.lock().unwrap() = vec![well, dead];
    house
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_lists_them_apart_and_says_of_each_that_it_is_not_here() {
    let house = house().await;
    let listed = house.manager(&["ListExternals"]).await.unwrap();
    for text in [
        "a(sasssst) 2 \"far/away\" 1 \"cloud\" \"https://api.example.org/team\" \"well\" \"\" ",
        "\"far/dead\" 0 \"http://192.0.2.7:8000\" \"unwell\" \"it cannot be reached\" 0",
    ] {
        assert!(listed.contains(text), "{text} is not in {listed}");
    }
    assert!(!house.manager(&["ListModels"]).await.unwrap().contains("far/"));
    let calls: [&[&str]; 5] = [
        &["GetModel", "s", "cloud"],
        &["Load", "sa{sv}", "far/away", "0"],
        &["Unload", "ss", "far/dead", "drain"],
        &["Measure", "s", "far/away"],
        &["Plan", "sa{sv}", "cloud", "0"],
    ];
    for call in calls {
        let refused = house.manager(call).await.unwrap_err();
        assert!(refused.contains("runs elsewhere, at "), "{call:?}: {refused}");
    }
    assert!(
        house.manager(&["GetModel", "s", "none"]).await.unwrap_err().contains("not configured")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_program_shows_them_and_says_what_cannot_be_done() {
    let mut house = house().await;
    for command in ["list", "status"] {
        let shown = run(&house, &[command]).await;
        assert_eq!(shown.code, 0, "{shown:?}");
        for text in ["org/m", "ELSEWHERE", "far/away", "far/dead", "unwell", "it cannot be reached"]
        {
            assert!(shown.out.contains(text), "{command}: {text} is not in {}", shown.out);
        }
    }
    let ready = run(&house, &["list", "--phase", "ready"]).await;
    assert!(!ready.out.contains("far/"), "they have no phase: {}", ready.out);
    let all = run(&house, &["--json", "status"]).await.json();
    crate::schema::check(&all);
    assert_eq!(all["externals"][0]["health"], "well");
    // The two lists as the status has them, each of one shape.
    let models = run(&house, &["--json", "list"]).await.json();
    assert_eq!(models, all["models"]);
    let externals = run(&house, &["--json", "list", "--external"]).await.json();
    assert_eq!(externals, all["externals"]);
    assert_eq!(externals.as_array().unwrap().len(), 2);
    let shown = run(&house, &["list", "--external"]).await;
    assert!(shown.out.starts_with("ELSEWHERE ") && !shown.out.contains("org/m"), "{shown:?}");
    let wrong = run(&house, &["list", "--external", "--phase", "ready"]).await;
    assert_eq!(wrong.code, 2, "they have no phase: {wrong:?}");
    let one = run(&house, &["--json", "show", "cloud"]).await.json();
    assert_eq!(
        (&one["name"], &one["url"]),
        (&all["externals"][0]["name"], &all["externals"][0]["url"])
    );
    let shown = run(&house, &["show", "far/dead"]).await;
    assert!(shown.out.contains("URL: http://192.0.2.7:8000\n"), "{shown:?}");
    let why = run(&house, &["why", "far/dead"]).await;
    assert!(why.out.contains("503 external_unwell"), "{why:?}");
    let why = run(&house, &["--json", "why", "cloud"]).await.json();
    assert_eq!(why["external"]["health"], "well");
    // Nobody has to guess why.
    for args in [
        &["load", "cloud"][..],
        &["load", "--no-block", "far/away"],
        &["unload", "far/away"],
        &["pin", "far/away"],
        &["unpin", "far/away"],
        &["sleep", "far/away"],
        &["wake", "far/away"],
        &["plan", "far/away"],
        &["measure", "far/away"],
        &["logs", "far/away"],
        &["wait", "far/away"],
    ] {
        let refused = run(&house, args).await;
        assert_eq!(refused.code, 1, "{args:?}: {refused:?}");
        assert!(
            refused.err.contains("far/away runs elsewhere, at https://"),
            "{args:?}: {refused:?}"
        );
        assert!(refused.err.contains("hostler show far/away"), "{args:?}: {refused:?}");
    }
    while let Ok(ask) = house.asks.try_recv() {
        assert!(matches!(ask, Ask::Trouble { .. }), "the supervisor is asked of them: {ask:?}");
    }
}
