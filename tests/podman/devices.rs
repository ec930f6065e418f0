//! Containers with devices that do not start: podman's words are not the cause.

use std::sync::{Arc, Mutex};

use hostler::adapters::podman::Helpers;
use hostler::supervisor::ports::{ContainerSpec, Containers};
use hostler::types::{Fault, FaultCode};

use crate::fake::Fake;
use crate::support::progress;
use crate::wire::{created, one_container, plain, refuse};

const GPU: &str = "nvidia.com/gpu=GPU-1";
/// crun's words for a library that is gone, without its name.
const GONE: &str = "crun: cannot stat `/x`: No such file or directory: OCI runtime attempted to invoke a command that was not found";

/// How a launch ends whose start podman refuses with these words, and which devices were asked about meanwhile. `why`: what is wrong
/// with their specification.
async fn refused(
    spec: ContainerSpec,
    words: &'static str,
    why: Option<&'static str>,
) -> (Fault, Vec<String>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let unresolved = move |names: &[String]| {
        log.lock().unwrap().extend_from_slice(names);
        why.map(str::to_owned)
    };
    let helpers = Helpers { unresolved: Some(Arc::new(unresolved)), ..Helpers::default() };
    let script = one_container(created, move || refuse(words), "created");
    let (_fake, podman) = Fake::with(script, helpers);
    let fault = podman.launch(spec, progress().0).await.unwrap_err();
    let asked = asked.lock().unwrap().clone();
    (fault, asked)
}

fn with_device() -> ContainerSpec {
    let mut spec = plain();
    spec.cdi_devices = vec![GPU.to_owned()];
    spec
}

#[tokio::test]
async fn fault_11_what_the_specification_lacks_is_said_where_podman_does_not() {
    let stale = "the specification is out of date; write it anew";
    for words in [GONE, "unresolvable CDI devices nvidia.com/gpu=GPU-1"] {
        let (fault, asked) = refused(with_device(), words, Some(stale)).await;
        assert_eq!((fault.code, &*asked), (FaultCode::CdiUnresolvable, &[GPU.to_owned()][..]));
        let whole = fault.message.contains(words) && fault.message.ends_with(stale);
        assert!(whole && fault.message.contains("test/m"), "{fault}");
    }
}

#[tokio::test]
async fn fault_11_where_nothing_is_found_podmans_words_decide() {
    let (fault, asked) = refused(with_device(), GONE, None).await;
    assert_eq!((fault.code, asked.len()), (FaultCode::StartFailed, 1), "{fault}");
    let hook = "error executing hook `/usr/bin/nvidia-cdi-hook` (exit code: 1)";
    let (fault, _) = refused(with_device(), hook, None).await;
    assert_eq!(fault.code, FaultCode::CdiUnresolvable);
    for part in ["reboot", "nvidia-ctk cdi generate"] {
        assert!(fault.message.contains(part), "{fault}");
    }
}

#[tokio::test]
async fn without_devices_their_specification_is_not_to_blame() {
    let stale = Some("the specification is out of date");
    let words = ["crun: cannot stat `/srv/nvidia/x`: No such file or directory", GONE];
    for words in words {
        let (fault, asked) = refused(plain(), words, stale).await;
        assert_eq!((fault.code, asked.len()), (FaultCode::StartFailed, 0), "{fault}");
    }
    // Nor where podman is clear.
    let full = "write /x: no space left on device";
    let (fault, asked) = refused(with_device(), full, stale).await;
    assert_eq!((fault.code, asked.len()), (FaultCode::StorageFull, 0));
}
