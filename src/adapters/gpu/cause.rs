//! What NVML's errors mean here.
//!
//! Purpose: sort each [`NvmlError`] into a [`GpuError`] with its own message, and into how far it reaches. Owner:
//! [`super::reader`]. Invariants: pure, but for the question which driver this is; an error that has no cause of its own
//! keeps NVML's words, the call and the device.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "NVML's errors are a foreign and growing list; all but a few mean the same here"
)]

use std::path::Path;

use nvml_wrapper::Nvml as Library;
use nvml_wrapper::error::NvmlError;

use crate::supervisor::ports::GpuError;
use crate::types::GpuId;

/// The first driver branch with `nvmlDeviceGetMemoryInfo_v2` and the `_v3` process lists.
const DRIVER_NEEDED: u32 = 510;
/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`: the library knows the function but not this version of its argument.
const ARGUMENT_VERSION_MISMATCH: u32 = 25;

/// What went wrong, and how far it reaches.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// NVML as a whole does not work; it is initialised anew at the next reading.
    Backend(GpuError),
    /// This device does not work.
    Device(GpuError),
}

/// Sorts an error of initialisation. `path` is what was to be loaded.
pub(super) fn init_error(path: &Path, error: &NvmlError) -> GpuError {
    if let Some(cause) = backend_error(error) {
        return cause;
    }
    match error {
        // The linker's message does not always name what was to be loaded.
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            let text = error_text(error);
            let text = text.strip_prefix("a libloading error occurred: ").unwrap_or(&text);
            let path = path.display().to_string();
            GpuError::LibraryMissing(if text.contains(&path) {
                text.to_owned()
            } else {
                format!("{path}: {text}")
            })
        }
        NvmlError::NoPermission => GpuError::Other(
            "nvmlInit_v2: no permission to talk to the driver; /dev/nvidiactl has to be open to everybody, as engines are in no group: \"hostler doctor\""
                .to_owned(),
        ),
        error => GpuError::Other(format!("nvmlInit_v2: {}", error_text(error))),
    }
}

/// Errors that mean the same whatever call they come from.
fn backend_error(error: &NvmlError) -> Option<GpuError> {
    match error {
        NvmlError::DriverNotLoaded => Some(GpuError::DriverNotLoaded("NVML error 9".to_owned())),
        NvmlError::LibRmVersionMismatch => {
            Some(GpuError::VersionMismatch("NVML error 18".to_owned()))
        }
        NvmlError::Uninitialized => {
            Some(GpuError::Other("the library lost its initialisation, retrying".to_owned()))
        }
        _ => None,
    }
}

/// An NVML error without its own misspellings and with its number where it has no words.
fn error_text(error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => "the device fell off the bus or is inaccessible".to_owned(),
        NvmlError::UnexpectedVariant(code) => format!("NVML error {code}"),
        error => error.to_string(),
    }
}

/// Sorts an error of one call about one device.
pub(super) fn device_trouble(nvml: &Library, id: &GpuId, call: &str, error: &NvmlError) -> Trouble {
    if let Some(cause) = backend_error(error) {
        return Trouble::Backend(cause);
    }
    match error {
        NvmlError::FailedToLoadSymbol(_)
        | NvmlError::FunctionNotFound
        | NvmlError::UnexpectedVariant(ARGUMENT_VERSION_MISMATCH) => {
            let driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".to_owned());
            Trouble::Backend(GpuError::Other(old_driver(&driver, call)))
        }
        NvmlError::GpuLost | NvmlError::ResetRequired => {
            Trouble::Device(GpuError::Lost(id.clone(), error_text(error)))
        }
        error => Trouble::Device(GpuError::Other(format!("{call} on {id}: {}", error_text(error)))),
    }
}

fn old_driver(driver: &str, call: &str) -> String {
    format!(
        "the driver {driver} does not offer {call}; install NVIDIA driver {DRIVER_NEEDED} or newer"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initialisation_errors_have_their_own_cause() {
        let path = Path::new("libnvidia-ml.so.1");
        let text = |error: NvmlError| init_error(path, &error);
        assert!(matches!(text(NvmlError::DriverNotLoaded), GpuError::DriverNotLoaded(_)));
        assert!(matches!(text(NvmlError::LibRmVersionMismatch), GpuError::VersionMismatch(_)));
        assert!(matches!(text(NvmlError::LibraryNotFound), GpuError::LibraryMissing(_)));
        let GpuError::Other(other) = text(NvmlError::UnexpectedVariant(42)) else { panic!() };
        assert!(other.contains("42"), "{other}");
        let GpuError::Other(other) = text(NvmlError::NoPermission) else { panic!() };
        assert!(other.contains("/dev/nvidiactl"), "{other}");
    }
}
