//! Doors that lead out of the host, and in from others.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};
use testhost::{Host, Look, wait_for};

use crate::harness::{
    COUNT, FIRST, PODMAN, Refusal, SOON, config, curl, get, post, put_count_model, refused,
    serving, skip_unless_wanted, status,
};

/// What the endpoint on another socket says to whoever has this key.
fn outside(host: &Host, key: Option<&str>) -> u16 {
    let header = format!("authorization: Bearer {}", key.unwrap_or_default());
    let mut args = vec!["http://127.0.0.1:8712/v1/models"];
    if key.is_some() {
        args.extend(["-H", &header]);
    }
    curl(host, &args).status
}

#[test]
fn a_socket_for_other_hosts_is_served_with_keys_and_not_without() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    host.write_file(
        "/etc/systemd/system/hostler.socket.d/others.conf",
        "[Socket]\nListenStream=0.0.0.0:8712\n",
    )
    .unwrap();
    host.root("systemctl daemon-reload; systemctl restart hostler.socket").unwrap();
    refused(
        &host,
        &Refusal {
            status: 78,
            word: "config_invalid",
            says: &["0.0.0.0:8712", "keys_file", "ListenStream="],
        },
    );
    // Whoever comes from outside is told no more than that, and gets nothing else.
    assert_eq!(outside(&host, None), 503);

    let digest = Sha256::digest("sk-boss").iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    host.write_file("/etc/hostler/keys.toml", &format!("[keys.boss]\nsha256 = \"{digest}\"\n"))
        .unwrap();
    config(&host, &format!("[auth]\nkeys_file = \"/etc/hostler/keys.toml\"\n{COUNT}")).unwrap();
    wait_for("the daemon to start with keys", FIRST, || {
        let answer = get(&host, "/health")?;
        Ok(if answer.status == 200 { Look::Done(()) } else { Look::NotYet(answer.body) })
    })
    .unwrap();
    assert_eq!(
        [None, Some("sk-bob"), Some("sk-boss")].map(|key| outside(&host, key)),
        [401, 401, 200]
    );
}

/// A certificate authority that nobody knows, and a certificate of `far.test` by it: `ca.pem`, `cert.pem` and `key.pem` in `dir`.
fn certificates(dir: &Path) {
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=nobody -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=far.test -keyout key.pem -out far.csr
        printf 'subjectAltName=DNS:far.test\\nbasicConstraints=CA:FALSE\\n' >extensions
        openssl x509 -req -in far.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem";
    let output = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A real llama-server that is nothing of Hostler's: it speaks TLS and asks for a key.
fn elsewhere(host: &Host, dir: &Path) {
    for (file, to) in [("cert.pem", "/srv/tls/cert.pem"), ("key.pem", "/srv/tls/key.pem")] {
        host.write_file(to, &std::fs::read_to_string(dir.join(file)).unwrap()).unwrap();
    }
    host.root("chmod -R a+rX /srv/tls; echo 127.0.0.1 far.test >>/etc/hosts").unwrap();
    let model = put_count_model(host).unwrap();
    let run = format!(
        "{PODMAN} run --detach --name far --network host --read-only --env LLAMA_API_KEY=sk-far \
         --env LLAMA_ARG_THREADS=1 --volume /srv/tls:/tls:ro --volume {model}:/models/m.gguf:ro \
         localhost/hostler/llama-server:latest --host 127.0.0.1 --port 9443 --alias big --ctx-size 4096 \
         --ssl-cert-file /tls/cert.pem --ssl-key-file /tls/key.pem --model /models/m.gguf"
    );
    host.user("hostler", &run).unwrap();
}

fn external(host: &Host) -> Value {
    status(host).unwrap()["externals"][0].clone()
}

fn wait_external(host: &Host, health: &str) -> Value {
    wait_for(&format!("the external model to be {health}"), SOON, || {
        let row = external(host);
        Ok(if row["health"] == health { Look::Done(row) } else { Look::NotYet(row.to_string()) })
    })
    .unwrap()
}

const FAR: &str = "[gpu]\nbackend = \"host\"\n\n[models.far]\nengine = \"external\"\n\
    url = \"https://far.test:9443\"\nserved_name = \"big\"\nkey_credential = \"far-key\"\n";

#[test]
fn a_model_elsewhere_over_tls_is_asked_with_a_key_from_a_credential() {
    skip_unless_wanted!();
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let host = serving(FAR).unwrap();
    elsewhere(&host, dir.path());
    host.write_file("/etc/hostler/far.key", "sk-far\n").unwrap();
    host.root("chmod 600 /etc/hostler/far.key").unwrap();
    host.write_file(
        "/etc/systemd/system/hostler.service.d/far.conf",
        "[Service]\nRestrictAddressFamilies=AF_INET AF_INET6\nIPAddressAllow=localhost\n\
         LoadCredential=far-key:/etc/hostler/far.key\n",
    )
    .unwrap();
    host.root("systemctl daemon-reload").unwrap();

    // Nobody vouches for its certificate, so it is asked nothing, and gets no key.
    host.root("mkdir -p /etc/ssl/certs; rm -rf /etc/ssl/certs/*").unwrap();
    let body = "{\"model\":\"far\",\"prompt\":\" 1\",\"max_tokens\":3}";
    let ask = || post(&host, "/v1/completions", body).wait();
    let why = wait_external(&host, "unwell")["why"].to_string();
    assert!(why.contains("install ca-certificates"), "{why}");
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    let trust = |dir: &Path| {
        let authority = std::fs::read_to_string(dir.join("ca.pem")).unwrap();
        host.write_file("/etc/ssl/certs/ca-certificates.crt", &authority).unwrap();
        host.root("chmod -R a+rX /etc/ssl/certs; systemctl restart hostler.service").unwrap();
    };
    trust(other.path());
    let why = wait_external(&host, "unwell")["why"].to_string();
    assert!(why.contains("certificate"), "{why}");
    let refused = ask();
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (503, &"external_unwell".into())
    );

    trust(dir.path());
    wait_external(&host, "well");
    let answer = ask();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["choices"][0]["text"], " 2 3 4");
    let ids = get(&host, "/v1/models").unwrap().json()["data"].clone();
    assert_eq!(ids[0]["id"], "far");
    // Whoever operates the host sees it, and is told where to do what cannot be done here.
    for (look, want) in [
        ("hostler list", "https://far.test:9443"),
        ("hostler list --external --json", "\"url\": \"https://far.test:9443\""),
        ("hostler show far", "Health: well for "),
        (
            "busctl call org.hostler1 /org/hostler1 org.hostler1.Manager ListExternals",
            "\"well\" \"\"",
        ),
        ("curl -sS http://127.0.0.1:8711/api/v1/externals", "\"health\":\"well\""),
        ("curl -sS http://127.0.0.1:8711/api/tags", "\"name\":\"far\""),
        ("curl -sS http://127.0.0.1:8711/metrics", "hostler_external_up{model=\"far\"} 1"),
        ("! hostler load far 2>&1", "runs elsewhere, at https://far.test:9443"),
        (
            "! systemctl start hostler-model@far && journalctl -u hostler-model@far",
            "runs elsewhere, at ",
        ),
    ] {
        let seen = host.root(look).unwrap();
        assert!(seen.contains(want), "{look}: {seen}");
    }
    // It asks for that key, and nobody else has it.
    let direct = |key: &str| {
        host.root(&format!(
            "curl -sS -o /dev/null -w '%{{http_code}}' --cacert /etc/ssl/certs/ca-certificates.crt \
             -H 'authorization: Bearer {key}' https://far.test:9443/tokenize -d '{{\"content\":\"1\"}}'"
        ))
        .unwrap()
    };
    assert_eq!((direct("sk-far"), direct("sk-bob")), ("200".into(), "401".into()));
    let shown = [
        host.journal("hostler.service").unwrap(),
        external(&host).to_string(),
        host.root("systemctl show hostler.service; tr '\\0' '\\n' </proc/$(systemctl show -P MainPID hostler.service)/environ").unwrap(),
    ];
    assert!(shown.iter().all(|text| !text.contains("sk-far")), "{shown:?}");
}
