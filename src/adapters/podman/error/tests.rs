//! What podman's words are taken for, and what people are told then.

use super::*;

#[test]
fn podmans_own_words_are_sorted() {
    // As podman 4.3.1 and 5.4.2 said them.
    for (text, cause) in [
        ("no container with name or ID \"t1\" found: no such container", Cause::NoSuchContainer),
        ("localhost/nope:1: image not known", Cause::ImageUnknown),
        (
            "failed to find image x@sha256:00: parsing reference: invalid reference format",
            Cause::ImageUnknown,
        ),
        (
            "setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=0",
            Cause::CdiUnresolvable,
        ),
        ("statfs /nope: no such file or directory", Cause::BindSourceMissing),
        ("statfs /home/a/m.gguf: permission denied", Cause::BindSourceClosed),
        (
            "creating container storage: the container name \"a\" is already in use by 02d9. You have to remove that container to be able to reuse that name: that name is already in use",
            Cause::NameTaken,
        ),
        ("writing blob: write /x: no space left on device", Cause::StorageFull),
        ("crun: open `/x`: No space left on device: OCI runtime error", Cause::StorageFull),
        ("crun: mkdir `/x`: Disk quota exceeded: OCI runtime error", Cause::StorageFull),
        // As it goes after an upgrade of the driver, with an old specification.
        (
            "crun: cannot stat `/usr/lib/x86_64-linux-gnu/libEGL_nvidia.so.550.54.14`: No such file or directory: OCI runtime attempted to invoke a command that was not found",
            Cause::CdiStale,
        ),
        (
            "failed to inject devices: failed to stat CDI host device \"/dev/nvidia-uvm\": no such file or directory",
            Cause::CdiStale,
        ),
        (
            "crun: error executing hook `/usr/bin/nvidia-cdi-hook` (exit code: 1): OCI runtime error",
            Cause::CdiStale,
        ),
        ("error executing hook `/usr/bin/nvidia-ctk` (exit code: 1)", Cause::CdiStale),
        ("crun: cannot stat `/srv/x`: No such file or directory", Cause::Other),
        (
            "crun: executable file `/bin/nope` not found in $PATH: No such file or directory",
            Cause::Other,
        ),
    ] {
        assert_eq!(Cause::of(text), cause, "{text}");
    }
}

#[test]
fn a_fault_names_thing_reason_and_fix() {
    let e = PodmanError::refused("start", "unresolvable CDI devices nvidia.com/gpu=0");
    let fault = e.fault(FaultCode::StartFailed, "model m");
    assert_eq!(fault.code, FaultCode::CdiUnresolvable);
    for part in ["model m", "nvidia.com/gpu=0", crate::types::CDI_GENERATE] {
        assert!(fault.message.contains(part), "{fault}");
    }
    let e = PodmanError::Unreachable { socket: "/s".into(), reason: "refused".into() };
    let fault = e.fault(FaultCode::CreateFailed, "model m");
    assert_eq!(fault.code, FaultCode::PodmanUnreachable);
    assert!(fault.message.contains("hostler-podman.socket"), "{fault}");
    assert!(!e.ambiguous());
    assert!(PodmanError::Deadline { what: "x".into(), after: Duration::ZERO }.ambiguous());
}

#[test]
fn a_missing_image_says_how_to_get_it() {
    let remote = ImageRef::parse("quay.example/x:1").unwrap();
    let local = ImageRef::parse("localhost/x:1").unwrap();
    for (hand, image, said) in [
        (
            Hand::Service,
            &remote,
            "is not in the service user's storage (why); fetch it: sudo podman --remote --url unix:///run/hostler/service/podman.sock pull quay.example/x:1",
        ),
        (
            Hand::Service,
            &local,
            "sudo systemd-run --machine=hostler@.host --user --pipe --wait podman load < IMAGE.tar",
        ),
        (
            Hand::Own,
            &remote,
            "is not in your storage (why); fetch it: podman pull quay.example/x:1",
        ),
        (Hand::Own, &local, "load it: podman load < IMAGE.tar"),
    ] {
        let text = hand.missing(image, "why", None);
        assert!(text.ends_with(said), "{text}");
    }
    assert_eq!(image_missing(&remote, "x").code, FaultCode::ImageMissing);
}

#[test]
fn an_image_that_is_refused_has_the_fix_of_its_cause() {
    let image = ImageRef::parse("quay.example/org/x:1").unwrap();
    let short = ImageRef::parse("org/x:1").unwrap();
    let login = "podman login --authfile /var/lib/hostler/.config/containers/auth.json";
    for (image, text, fix) in [
        (
            &short,
            "short-name \"org/x:1\" did not resolve to an alias and no unqualified-search registries are defined in \"/etc/containers/registries.conf\"",
            format!("write it with its registry in the model's image, as {}", short.whole()),
        ),
        (
            &image,
            "initializing source x: reading manifest 1 in quay.example/org/x: unauthorized: access to the requested resource is not authorized",
            format!("{login} quay.example"),
        ),
        (
            &image,
            "initializing source x: reading manifest 1 in quay.example/org/x: requested access to the resource is denied",
            format!("{login} quay.example"),
        ),
        (
            &short,
            "unauthorized: authentication required",
            format!("{login} {}", short.whole().split('/').next().unwrap()),
        ),
        (
            &image,
            "initializing source x: reading manifest 1 in quay.example/org/x: manifest unknown",
            "look at the name and the tag in the model's image".to_owned(),
        ),
    ] {
        let fault = image_refused(image, &PodmanError::refused("pull", text));
        assert_eq!(fault.code, FaultCode::ImageMissing);
        assert!(fault.message.ends_with(&fix), "{fault}");
    }
}

#[test]
fn what_is_full_is_named() {
    let fault = |text: &str| {
        let fault = PodmanError::refused("pull", text).fault(FaultCode::PullFailed, "model m");
        assert_eq!(fault.code, FaultCode::StorageFull);
        fault.message
    };
    let there = "writing blob: storing blob to file \"/var/tmp/storage280617948/6\": write /var/tmp/storage280617948/6: no space left on device";
    let said = fault(there);
    assert!(said.contains("df -h /var/tmp") && !said.contains("system df"), "{said}");
    assert!(said.contains("--machine=hostler@ restart hostler-podman.service"), "{said}");
    let own = Hand::Own.elsewhere();
    assert!(own.contains("TMPDIR=") && !own.contains("sudo"), "{own}");
    for storage in [
        "write /var/lib/hostler/.local/share/containers/storage/overlay/x: no space left on device",
        "write /srv/var/tmp/x: no space left on device",
    ] {
        let said = fault(storage);
        assert!(said.contains("system df") && !said.contains("df -h"), "{said}");
    }
}

#[test]
fn weights_that_are_closed_have_their_own_fix() {
    let text = "statfs /home/a/m.gguf: permission denied";
    let fault = PodmanError::refused("create", text).fault(FaultCode::CreateFailed, "model m");
    assert_eq!(fault.code, FaultCode::WeightsMissing);
    assert!(fault.message.contains("sudo install -m 644"), "{fault}");
    assert!(!Hand::Own.closed().contains("sudo"));
}

#[test]
fn a_desktop_user_is_sent_to_no_other_users_podman() {
    let texts =
        [Hand::Own.ask("system df"), Hand::Own.run("load", ""), Hand::Own.status().to_owned()];
    for text in texts {
        assert!(!text.contains("sudo") && !text.contains("hostler@"), "{text}");
    }
}
