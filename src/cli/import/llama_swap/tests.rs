//! Whole configurations of llama-swap, and what comes of them.

use super::super::left;
use super::*;

fn told() -> Told {
    let image = |name: &str| format!("registry.example/{name}:1");
    Told {
        backend: Some("nvml"),
        images: BTreeMap::from([("llamacpp", image("llama-server")), ("vllm", image("vllm"))]),
    }
}

fn variable(name: &str) -> Option<String> {
    (name == "MODELS").then(|| "/srv/models".to_owned())
}

fn imported(text: &str) -> Imported {
    import(text, &told(), &variable).unwrap()
}

/// `cmd` of a model `m`, with more of its keys and of the top.
fn one(cmd: &str, more: &str, top: &str) -> String {
    format!("models:\n  m:\n    cmd: {cmd:?}\n{more}{top}")
}

#[test]
fn a_whole_configuration() {
    let imported = imported(include_str!("../../tests/llama-swap.yaml"));
    let warnings = left::lines(&imported.left).join("\n");
    let whole = format!("{}\n--- said on the terminal ---\n{warnings}\n", imported.text);
    assert!(!whole.contains("sk-very-secret"), "a key was shown");
    crate::cli::tests::compare("llama-swap.expected", &whole);
}

#[test]
fn what_is_written_means_what_it_meant() {
    let text = imported(include_str!("../../tests/llama-swap.yaml")).text;
    let config = config::parse(&[Source::settings("h", text)], &Defaults::system()).unwrap();
    let spec = |name: &str| config.models[name].clone();
    let qwen = spec("qwen3-30b");
    assert_eq!((qwen.context, qwen.parallel, qwen.gpu_count), (Some(32_768), Some(4), 2));
    assert_eq!(qwen.idle_timeout, None, "ttl 0 is never");
    assert_eq!(qwen.load_timeout.as_secs(), 300);
    assert_eq!(qwen.stop_timeout.as_secs(), 30);
    assert_eq!(qwen.door.max_concurrent, Some(8));
    assert_eq!(qwen.args, ["-ngl", "99", "--jinja", "--cache-type-k", "q8_0"]);
    assert_eq!(spec("vision").context, Some(16_384), "the global macro");
    assert_eq!(spec("vision").idle_timeout.map(|t| t.as_secs()), Some(120));
    assert!(spec("embed").pin && spec("news").pin && !qwen.pin);
    let vllm = spec("vllm-qwen");
    assert_eq!(vllm.image.as_str(), "registry.example/vllm-openai:v1");
    assert_eq!(vllm.idle_timeout.map(|t| t.as_secs()), Some(1800), "globalTTL");
    assert_eq!(config.externals.len(), 2);
    assert!(config.resolve("gpt-4o").is_some() && config.resolve("org/huge").is_some());
}

/// Each key of llama-swap's own list is read by somebody here: what it says is in the result, or is listed.
#[test]
fn nothing_is_lost() {
    let model = [
        ("cmdStop", "x"),
        ("proxy", "http://localhost:1"),
        ("aliases", "[b]"),
        ("env", "[A=1]"),
        ("checkEndpoint", "none"),
        ("ttl", "5"),
        ("unloadTimeout", "7"),
        ("unlisted", "true"),
        ("useModelName", "x"),
        ("name", "x"),
        ("description", "x"),
        ("concurrencyLimit", "3"),
        ("filters", "{stripParams: a}"),
        ("filters", "{setParams: {a: 1}}"),
        ("filters", "{setParamsByID: {a: {b: 1}}}"),
        ("metadata", "{a: 1}"),
        ("sendLoadingState", "true"),
        ("timeouts", "{connect: 1}"),
        ("compat", "{ignoreWebsockets: true}"),
        ("capabilities", "{tools: true}"),
        ("healthCheckTimeout", "30"),
        ("never_heard_of", "1"),
    ];
    let top = [
        ("healthCheckTimeout", "30"),
        ("logRequests", "true"),
        ("logLevel", "warn"),
        ("logTimeFormat", "kitchen"),
        ("logToStdout", "none"),
        ("metricsMaxInMemory", "1"),
        ("captureBuffer", "1"),
        ("store", "{path: /x}"),
        ("ui", "{activity: {session_id: []}}"),
        ("performance", "{disabled: true}"),
        ("globalTTL", "9"),
        ("unloadTimeout", "9"),
        ("profiles", "{p: {pins: {a: m}}}"),
        ("selectors", "{s: {strategy: pin}}"),
        ("routing", "{router: {settings: {groups: {g: {members: [m]}}}}}"),
        ("routing", "{scheduler: {settings: {fifo: {priority: {m: 5}}}}}"),
        ("groups", "{g: {members: [m]}}"),
        ("matrix", "{sets: {a: m}}"),
        ("startPort", "9"),
        ("hooks", "{on_startup: {preload: [m]}}"),
        ("sendLoadingState", "true"),
        ("includeAliasesInList", "false"),
        ("apiKeys", "[a]"),
        ("peers", "{p: {proxy: \"http://192.0.2.1\", models: [x]}}"),
        ("upstream", "{ignorePaths: [x]}"),
        ("never_heard_of", "1"),
    ];
    let cmd = "llama-server -m /m.gguf";
    let plain = imported(&one(cmd, "", ""));
    let other = |it: Imported, key: &str| {
        assert!(it.text != plain.text, "{key} left no trace in the file");
    };
    for (key, value) in model {
        other(imported(&one(cmd, &format!("    {key}: {value}\n"), "")), key);
    }
    for (key, value) in top {
        other(imported(&one(cmd, "", &format!("{key}: {value}\n"))), key);
    }
}

#[test]
fn one_setting_at_a_time() {
    let cmd = "llama-server -m /m.gguf";
    // cmd, keys of the model, keys of the top, a line that the file has then.
    let table = [
        (cmd, "", "", "idle_timeout = \"never\""),
        (cmd, "    ttl: 60\n", "", "idle_timeout = \"60s\""),
        (cmd, "    ttl: -1\n", "globalTTL: 30\n", "idle_timeout = \"30s\""),
        (cmd, "", "healthCheckTimeout: 5\n", "load_timeout = \"15s\""),
        (cmd, "    ttl: 9\n", "hooks: {on_startup: {preload: [m]}}\n", "pin = true"),
        (
            cmd,
            "    env: [\"CUDA_VISIBLE_DEVICES=GPU-1,GPU-2\"]\n",
            "",
            "gpus = [\"GPU-1\", \"GPU-2\"]",
        ),
        (cmd, "    env: [\"CUDA_VISIBLE_DEVICES=0\"]\n", "", "weights = { path = \"/m.gguf\" }"),
        (
            cmd,
            "",
            "routing: {scheduler: {settings: {fifo: {priority: {m: -3}}}}}\n",
            "priority = -3",
        ),
        (cmd, "    filters: {setParams: {a: \"x\\n[auth]\"}}\n", "", "force = { a = \"\"\""),
        ("vllm serve org/m --revision x", "", "", "#   hostler add org/m --name m --engine vllm"),
        ("vllm serve /srv/m", "", "", "image = \"registry.example/vllm:1\""),
        (cmd, "    proxy: http://gpu2:8080/\n", "", "url = \"http://gpu2:8080\""),
        (cmd, "", "macros: {x: \"\\n[auth]\"}\n\"a\\n[auth]\": 1\n", "[gpu]"),
    ];
    for (cmd, more, top, wanted) in table {
        let text = imported(&one(cmd, more, top)).text;
        assert!(
            text.lines().any(|line| line.starts_with(wanted)),
            "{more}{top}: no {wanted:?} in\n{text}"
        );
        let parsed: toml::Table = text.parse().unwrap();
        assert!(!parsed.contains_key("auth"), "broke out:\n{text}");
    }
}

#[test]
fn what_cannot_be_imported_says_why() {
    let fails = |text: &str| import(text, &Told::default(), &|_| None).unwrap_err();
    let cmd = "llama-server -m /m.gguf";
    let table = [
        ("models: [a\nx: sk-secret".to_owned(), Exit::Failed, "no YAML"),
        ("models:\n  a: 1\n  a: 2\n".to_owned(), Exit::Failed, "no YAML"),
        ("[]".to_owned(), Exit::Failed, "neither models nor peers"),
        (String::new(), Exit::Failed, "neither models nor peers"),
        (one(cmd, "", "macros: {a: [1]}\n"), Exit::Failed, "macro a"),
        (one("${env.HOME}/llama-server -m /m.gguf", "", ""), Exit::Usage, "HOME"),
        (one(cmd, "", ""), Exit::Usage, "which image has llama-server"),
        (one("vllm serve /m", "", ""), Exit::Usage, "which image has vLLM"),
        (
            one("docker run registry.example/llama:1 -m /m.gguf", "    aliases: [m]\n", ""),
            Exit::Config,
            "the name of the model",
        ),
    ];
    for (text, exit, word) in table {
        let failure = fails(&text);
        assert_eq!(failure.exit, exit, "{failure}");
        assert!(failure.message.contains(word), "{failure}");
        assert!(failure.fix.contains("nothing was written"), "{failure}");
        assert!(!failure.message.contains("sk-secret"), "{failure}");
    }
}

#[test]
fn a_host_without_gpus_is_one_device() {
    let text = one(
        "docker run -v /m:/m registry.example/vllm:1 --model /m -tp 2",
        "    env: [\"CUDA_VISIBLE_DEVICES=GPU-1\"]\n",
        "",
    );
    let told = Told { backend: Some("host"), ..Told::default() };
    let imported = import(&text, &told, &variable).unwrap();
    assert!(imported.text.contains("backend = \"host\"\n"));
    assert!(!imported.text.contains("\ngpus") && !imported.text.contains("\ngpu_count"));
    assert!(left::lines(&imported.left).iter().any(|line| line.contains("gpu_count")));
}

#[test]
fn nobody_said_where_memory_is_measured() {
    let text = one("docker run registry.example/llama:1 -m /m.gguf", "", "");
    let imported = import(&text, &Told::default(), &variable).unwrap();
    assert!(imported.text.contains("backend = \"nvml\""));
    assert!(imported.left[0].key.contains("backend"));
}

/// Whatever the file holds: what comes of it is a configuration, of the tables that the import writes and no other.
#[test]
fn fuzz_import() {
    let words = [
        "models:",
        "\n  m:\n    cmd: ",
        "llama-server -m /m.gguf ",
        "docker run ",
        "${MODEL_ID}",
        "${",
        "}",
        "- ",
        ": ",
        "\n    ",
        "&a ",
        "*a",
        "<<: *a",
        "peers:",
        "groups:",
        "[",
        "]",
        "{",
        "#",
        "\"",
        "'",
        "|\n",
        "\n[auth]\n",
        "ttl: -1",
        "filters:",
        "setParams:",
    ];
    crate::fuzz::fuzz("import", &words, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(imported) = import(text, &told(), &variable) else { return };
        let table: toml::Table = imported.text.parse().unwrap();
        let known = ["gpu", "log", "models"];
        assert!(table.keys().all(|key| known.contains(&key.as_str())), "{}", imported.text);
        left::lines(&imported.left).iter().for_each(|line| assert!(!line.contains('\n'), "{line}"));
    });
}
