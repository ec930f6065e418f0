//! The command that writes a CDI specification.
//!
//! Purpose: one text for every message that names it and for whoever runs it. Owner: nobody; data. Invariant: devices get their index as
//! well as their UUID: Hostler asks by UUID, and other containers of the host by either; toolkits before 1.15 wrote one of them
//! unless told both, and what is written replaces all that was there.

macro_rules! generate {
    () => {
        "nvidia-ctk cdi generate --device-name-strategy=index --device-name-strategy=uuid"
    };
}

/// Without the file: ` --output=FILE` comes behind.
pub const CDI_GENERATE: &str = generate!();

/// For a host that has none yet.
pub const CDI_WRITE: &str = concat!(generate!(), " --output=/etc/cdi/nvidia.yaml");
