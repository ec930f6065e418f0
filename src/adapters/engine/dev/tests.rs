//! On real sockets, against the stand-in engine.

use std::path::PathBuf;
use std::sync::Arc;

use fake_engine::{Config, Engine};
use nvidia_ml::{Gpu, Script, StateDir};

use super::*;

const GPU: &str = "GPU-0";
const GIB: u64 = 1 << 30;

/// A stand-in for vLLM with 13 GiB on a device, in a thread of its own.
struct Fake {
    engine: Arc<Engine>,
    socket: PathBuf,
    nvstub: StateDir,
    _root: tempfile::TempDir,
}

impl Fake {
    async fn start(knobs: &[(&str, &str)], change: impl FnOnce(&mut Config)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (socket, nvstub) = (root.path().join("e.sock"), StateDir::new(root.path().join("nv")));
        Script::with_gpus(vec![Gpu::new(GPU, 24 * GIB)]).save(&nvstub).unwrap();
        let mut config = Config::unix("m", &socket);
        config.nvstub = nvstub.clone();
        let vram = ("VRAM", "weights=8GiB,kv=4GiB,overhead=1GiB");
        for (knob, value) in [("RATE", "2000"), ("TTFT", "1ms"), vram].iter().chain(knobs) {
            config = config.with(knob, value).unwrap();
        }
        change(&mut config);
        let (engine, _task) = fake_engine::start(config);
        assert!(engine.ready().await, "it is ready");
        Self { engine, socket, nvstub, _root: root }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket.clone())
    }

    fn used(&self) -> u64 {
        nvidia_ml::usage(&self.nvstub, GPU).unwrap().unwrap().used
    }

    async fn canary(&self) -> Result<String, CanaryError> {
        canary(&self.endpoint(), &"m".parse().unwrap()).await
    }
}

const RELOAD: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_canary_answers_after_a_wake_as_before() {
    let fake = Fake::start(&[], |_| {}).await;
    let before = fake.canary().await.unwrap();
    assert!(!before.is_empty());
    for level in [SleepLevel::One, SleepLevel::Two] {
        sleep(&fake.endpoint(), level).await.unwrap();
        assert_eq!(fake.used(), GIB, "level {level}");
        assert_eq!(fake.canary().await, Err(CanaryError::Asleep), "it would hang");
        wake(&fake.endpoint(), level, RELOAD).await.unwrap();
        assert_eq!(fake.used(), 13 * GIB);
        assert_eq!(fake.canary().await.as_ref(), Ok(&before), "level {level}");
    }
    // An engine that is awake is none the worse for a wake.
    wake(&fake.endpoint(), SleepLevel::One, RELOAD).await.unwrap();
    assert_eq!(fake.canary().await, Ok(before));
    drop(fake.engine);
}

#[tokio::test]
async fn weights_that_came_back_wrong_show() {
    for (level, knob) in [(SleepLevel::One, "1=gibberish"), (SleepLevel::Two, "2=gibberish")] {
        let fake = Fake::start(&[("WAKE", knob)], |_| {}).await;
        let before = fake.canary().await.unwrap();
        sleep(&fake.endpoint(), level).await.unwrap();
        wake(&fake.endpoint(), level, RELOAD).await.unwrap();
        assert_ne!(fake.canary().await.unwrap(), before, "level {level}");
    }
    // So do weights that were never loaded again.
    let fake = Fake::start(&[], |_| {}).await;
    let before = fake.canary().await.unwrap();
    sleep(&fake.endpoint(), SleepLevel::Two).await.unwrap();
    wake(&fake.endpoint(), SleepLevel::One, RELOAD).await.unwrap();
    assert_ne!(fake.canary().await.unwrap(), before);
}

#[tokio::test]
async fn its_word_is_passed_on_and_its_refusals_are_told() {
    // Without its option it says that it sleeps, and only the driver knows better.
    let fake = Fake::start(&[], |config| config.sleep_mode = false).await;
    assert_eq!(sleep(&fake.endpoint(), SleepLevel::One).await, Ok(()));
    assert_eq!(fake.used(), 13 * GIB);
    // Without its development routes nothing can be asked.
    let fake = Fake::start(&[], |config| config.dev_mode = false).await;
    let why = sleep(&fake.endpoint(), SleepLevel::One).await.unwrap_err();
    assert!(why.starts_with("/sleep?level=1: answered 404"), "{why}");
    assert!(matches!(fake.canary().await, Err(CanaryError::Failed(why)) if why.contains("404")));
    let fake = Fake::start(&[("WAKE", "1=error")], |_| {}).await;
    sleep(&fake.endpoint(), SleepLevel::One).await.unwrap();
    let why = wake(&fake.endpoint(), SleepLevel::One, RELOAD).await.unwrap_err();
    assert!(why.starts_with("/wake_up: "), "{why}");
    let nobody = Endpoint::Unix("/nowhere/e.sock".into());
    let sung = canary(&nobody, &"m".parse().unwrap()).await;
    assert!(matches!(sung, Err(CanaryError::Silent(why)) if why.contains("cannot connect")));
    let why = sleep(&nobody, SleepLevel::One).await.unwrap_err();
    assert!(why.contains("cannot connect"), "{why}");
}

#[tokio::test]
async fn an_engine_that_never_answers_is_given_up() {
    let fake = Fake::start(&[("WAKE", "1=hang")], |_| {}).await;
    sleep(&fake.endpoint(), SleepLevel::One).await.unwrap();
    let short = Duration::from_millis(100);
    let late = exchange(&fake.endpoint(), Method::POST, "/wake_up", None, short).await;
    assert!(late.unwrap_err().contains("no answer within"));
}

/// What it writes would be a line of its own in the log, and clear a terminal.
#[tokio::test]
async fn what_a_refusal_says_is_one_line_of_plain_text() {
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join("e.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let engine = async || {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        let answer = "HTTP/1.1 500 No\r\ncontent-length: 8\r\n\r\na\nb\u{1b}[2Jc";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let endpoint = Endpoint::Unix(socket);
    let (why, _stream) = tokio::join!(sleep(&endpoint, SleepLevel::One), engine());
    assert_eq!(why, Err("/sleep?level=1: answered 500: a b [2Jc".to_owned()));
    // And from one that is broken nothing can be learned of its answers.
    let model = "m".parse().unwrap();
    let (sung, _stream) = tokio::join!(canary(&endpoint, &model), engine());
    let why = "/is_sleeping: answered 500: a b [2Jc".to_owned();
    assert_eq!(sung, Err(CanaryError::Silent(why)));
}
