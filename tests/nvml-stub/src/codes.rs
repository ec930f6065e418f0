//! NVML's return codes, with the numbers and the texts of `nvml.h`.

use std::ffi::{c_char, c_uint};

pub(crate) type Return = c_uint;

pub(crate) const SUCCESS: Return = 0;
pub(crate) const UNINITIALIZED: Return = 1;
pub(crate) const INVALID_ARGUMENT: Return = 2;
pub(crate) const NOT_SUPPORTED: Return = 3;
pub(crate) const NO_PERMISSION: Return = 4;
pub(crate) const NOT_FOUND: Return = 6;
pub(crate) const INSUFFICIENT_SIZE: Return = 7;
pub(crate) const DRIVER_NOT_LOADED: Return = 9;
pub(crate) const GPU_IS_LOST: Return = 15;
pub(crate) const VERSION_MISMATCH: Return = 25;
pub(crate) const UNKNOWN: Return = 999;

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: Return) -> *const c_char {
    let text = match code {
        SUCCESS => c"The operation was successful",
        UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NO_PERMISSION => c"Insufficient Permissions",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        DRIVER_NOT_LOADED => c"Driver Not Loaded",
        10 => c"Timeout",
        GPU_IS_LOST => c"GPU is lost",
        18 => c"Driver/library version mismatch",
        20 => c"Insufficient Memory",
        VERSION_MISMATCH => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}
