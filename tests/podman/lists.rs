//! What there is, as a scripted server lists it.

use hostler::supervisor::ports::Containers;
use hostler::types::SpecHash;
use serde_json::json;

use crate::fake::{Act, Fake};
use crate::wire::{labels_of, plain};

/// podman goes on with a stop whose caller was killed: the next daemon must not take what is left for one to keep.
#[tokio::test]
async fn what_podman_ends_already_fits_no_specification() {
    for (state, fits) in [
        (json!("running"), true),
        (json!("stopping"), false),
        (json!("removing"), false),
        // It does not say.
        (json!(null), true),
    ] {
        let spec = plain();
        let (name, labels) = (spec.instance.container_name(), labels_of(&spec));
        let (id, told) = ("ab".repeat(32), state.clone());
        let (_fake, podman) = Fake::new(move |_, path, _, _| {
            assert!(path.starts_with("/containers/json"), "{path}");
            let one = json!([{"Id": id, "Names": [name], "Labels": labels, "State": told}]);
            Act::Say(200, one)
        });
        let found = podman.list().await.unwrap();
        let identity = found[0].identity.as_ref().unwrap();
        assert_eq!(identity.instance, spec.instance, "{state}: whose it is is known all the same");
        let hash = if fits { SpecHash("x".into()) } else { SpecHash::NONE };
        assert_eq!(identity.spec_hash, hash, "{state}");
    }
}
