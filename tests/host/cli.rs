//! The operator's program where no daemon is needed: files, new models, the host's fitness.

use testhost::{Host, Run};

use crate::harness::{MODELS, config, installed, put_count_model, serving, skip_unless_wanted};

const HOST: &str = "[gpu]\nbackend = \"host\"\n";

fn hostler(host: &Host, args: &str) -> Run {
    host.try_root(&format!("hostler {args}")).unwrap()
}

fn status(run: &Run) -> i32 {
    run.status.code().unwrap_or(-1)
}

/// One that has to succeed; its standard output.
fn good(host: &Host, args: &str) -> String {
    let run = hostler(host, args);
    assert_eq!(status(&run), 0, "hostler {args}: {}{}", run.stdout, run.stderr);
    run.stdout
}

#[test]
fn the_program_its_pages_and_its_completions_are_installed() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    assert!(good(&host, "--version").starts_with("hostler "));
    host.root("test -s /usr/share/man/man1/hostler.1.gz -a -s /usr/share/man/man8/hostlerd.8.gz")
        .unwrap();
    host.root("bash -n /usr/share/bash-completion/completions/hostler").unwrap();
    let run = hostler(&host, "lod");
    assert_eq!(status(&run), 2, "{run:?}");
    // Nothing is configured and nothing runs: each says so, with what to do.
    let run = hostler(&host, "config check");
    assert_eq!(status(&run), 78, "{run:?}");
    assert!(run.stderr.contains("/etc/hostler/hostler.toml"), "{}", run.stderr);
    let run = hostler(&host, "status");
    assert_eq!(status(&run), 3, "{run:?}");
    assert!(run.stderr.contains("systemctl start hostler"), "{}", run.stderr);
    host.root("systemctl stop dbus.socket dbus.service").unwrap();
    let run = hostler(&host, "status");
    assert_eq!(status(&run), 3, "{run:?}");
    assert!(run.stderr.contains("D-Bus cannot be reached"), "{}", run.stderr);
}

#[test]
fn a_model_is_added_checked_shown_and_removed() {
    skip_unless_wanted!();
    let host = installed().boot().unwrap();
    let model = put_count_model(&host).unwrap();
    config(&host, HOST).unwrap();
    let image = "--image localhost/hostler/llama-server:latest";
    // Whatever is wrong is said before anything is written.
    let run = hostler(&host, &format!("add {model}"));
    assert_eq!(status(&run), 2, "{run:?}");
    assert!(run.stderr.contains("--image"), "{}", run.stderr);
    let run = hostler(&host, &format!("add {model} {image} --vram lots"));
    assert_eq!(status(&run), 78, "{run:?}");
    assert_eq!(host.root("find /etc/hostler -type f").unwrap(), "/etc/hostler/hostler.toml\n");
    let run = hostler(&host, "add /nowhere.gguf");
    assert_eq!(status(&run), 4, "{run:?}");

    let add = format!("add {model} {image} --name org/count --alias count --context 2048");
    let dry = good(&host, &format!("{add} --dry-run"));
    assert!(dry.contains("context = 2048"), "{dry}");
    assert_eq!(host.root("find /etc/hostler -type f").unwrap(), "/etc/hostler/hostler.toml\n");
    good(&host, &add);
    let file = "/etc/hostler/models.d/org-count.toml";
    assert_eq!(host.root(&format!("cat {file}")).unwrap(), dry);
    assert_eq!(host.root(&format!("stat -c '%U %a' {file}")).unwrap(), "root 644\n");
    good(&host, "config check");
    assert!(good(&host, "config files").contains(file));
    // Root may read it, and is not who does.
    host.root(&format!("chmod 600 {file}")).unwrap();
    let run = hostler(&host, "config check");
    assert_eq!(status(&run), 78, "{run:?}");
    assert!(run.stderr.contains(&format!("chgrp hostler {file} && chmod 0640 {file}")), "{run:?}");
    host.root(&format!("chgrp hostler {file} && chmod 0640 {file}")).unwrap();
    good(&host, "config check");
    host.root(&format!("chgrp root {file} && chmod 644 {file}")).unwrap();
    // The same again is refused, and the image is known by now.
    let run = hostler(&host, &add);
    assert_eq!(status(&run), 1, "{run:?}");
    assert!(run.stderr.contains("--force"), "{}", run.stderr);
    good(&host, &format!("add {model} --name org/count --force --pin"));
    assert!(host.root(&format!("cat {file}")).unwrap().contains("pin = true"));

    good(&host, "remove org/count");
    assert_eq!(host.root("ls /etc/hostler/models.d").unwrap(), "");
    assert_eq!(status(&hostler(&host, "remove org/count")), 4);
}

#[test]
fn a_quadlet_unit_becomes_a_model() {
    skip_unless_wanted!();
    let host = serving(HOST).unwrap();
    let unit = format!(
        "[Container]\nImage=localhost/hostler/llama-server:latest\nVolume={MODELS}:/m:ro\n\
         Exec=-m /m/count-512.gguf --host 0.0.0.0 -c 4096\nPublishPort=80:80\n\
         Environment=LLAMA_ARG_THREADS=1 LLAMA_ARG_THREADS_HTTP=8\n"
    );
    host.write_file("/root/count.container", &unit).unwrap();
    let run = hostler(&host, "add --quadlet /root/count.container");
    assert_eq!(status(&run), 0, "{run:?}");
    assert!(
        run.stdout.contains(&format!("weights = {{ path = \"{MODELS}/count-512.gguf\" }}")),
        "{}",
        run.stdout
    );
    assert!(run.stderr.contains("line 5: PublishPort=80:80 is not taken over: "), "{}", run.stderr);
    good(&host, "config check");
    // It does what the unit did.
    host.root("systemctl start hostler.service").unwrap();
    good(&host, "load count");
    crate::harness::count(&host).check();
    let args = host.root("tr '\\0' ' ' </proc/$(pgrep --exact llama-server)/cmdline").unwrap();
    assert!(args.contains("-c 4096"), "{args}");
}

#[test]
fn an_image_with_weights_becomes_a_model_that_answers() {
    skip_unless_wanted!();
    let host = serving(HOST).unwrap();
    let weights = testhost::assets::count_512().unwrap();
    host.load_image(&testhost::assets::model_image(&weights, "count-512").unwrap()).unwrap();
    host.root("systemctl start hostler.service").unwrap();
    let image = "localhost/hostler/model-count-512:latest";
    let run = hostler(&host, &format!("add {image} --image localhost/hostler/llama-server:latest"));
    assert_eq!(status(&run), 2, "{run:?}");
    assert!(run.stderr.contains("--inside"), "{}", run.stderr);
    let run = hostler(
        &host,
        &format!(
            "add {image} --inside /models/count-512.gguf --name count --context 4096 \
             --image localhost/hostler/llama-server:latest --env LLAMA_ARG_THREADS=1 --env LLAMA_ARG_THREADS_HTTP=8"
        ),
    );
    assert_eq!(status(&run), 0, "{run:?}");
    let wanted = format!("weights = {{ image = \"{image}\", path = \"/models/count-512.gguf\" }}");
    assert!(
        run.stdout.contains(&wanted) && run.stdout.contains("engine = \"llamacpp\""),
        "{}",
        run.stdout
    );
    assert!(run.stderr.contains("reloaded"), "{}", run.stderr);
    good(&host, "load count");
    crate::harness::count(&host).check();
    // The engine reads it where podman mounts it, and cannot write there.
    let mounts = host
        .root("grep -h ' /[^ ]*model[^ ]* ' /proc/$(pgrep --exact llama-server)/mounts")
        .unwrap();
    assert!(
        mounts.lines().all(|line| line.contains(" ro,") || line.contains(" overlay ")),
        "{mounts}"
    );
    good(&host, "remove count");
}
