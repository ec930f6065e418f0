//! The dashboard in a real browser, headless: what its visitor sees and does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hostler::proxy::External;
use hostler::types::{ModelName, Origin};
use tokio::process::Command;

use crate::house::{ADMIN, House, KEY};
use testhost::skip;

use crate::{clients, here, run};

/// A Chromium of the system; `None`: there is none.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|n| dir.join(n))).find(|p| p.is_file())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_loaded_by_a_click_and_answers() {
    let test = "a_model_is_loaded_by_a_click_and_answers";
    let Some(browser) = chromium() else { return skip(test, "there is no Chromium") };
    let Some(dir) = clients(test, "node").await else { return };
    let second = "[models.\"org/second\"]\nengine = \"llamacpp\"\nimage = \"localhost/e\"\nvram = \"8GiB\"\n\
                  [models.\"org/third\"]\nengine = \"llamacpp\"\nimage = \"localhost/e\"\nvram = \"18GiB\"";
    let knobs = [("FAKE_LOAD", "2s"), ("FAKE_RATE", "200")];
    // Nobody listens there any more.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let house = House::new(second, &knobs, |rules| {
        rules.feedback_after = Duration::from_millis(100);
        let name: ModelName = "far/away".parse().unwrap();
        let (host, prefix) = (gone.ip().to_string(), String::new());
        let origin = Origin { tls: false, host, port: gone.port(), prefix };
        let external = External { origin, key: None, health: "/v1/models".into() };
        rules.models.insert(name.clone(), Arc::default());
        rules.externals.insert(name, Arc::new(external));
    })
    .await;
    let script = dir.join("browser.mjs");
    std::fs::copy(here().join("browser.mjs"), &script).unwrap();
    let mut command = Command::new("node");
    command.arg(script).env("BROWSER", browser).env("ADMIN", ADMIN);
    if let Some(shots) = std::env::var_os("SHOTS") {
        command.env("SHOTS", shots);
    }
    assert_ne!(ADMIN, KEY);
    run(command, &house).await;
}
