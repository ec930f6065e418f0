//! What the sandbox of `hostler.service` forbids on purpose, and how an administrator allows it.
//!
//! Invariant: whoever is refused something by the sandbox says what to write where; the words are here only.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// "Address family not supported by protocol": what `RestrictAddressFamilies=` answers, and a kernel without that family.
const EAFNOSUPPORT: i32 = 97;

/// Places that it may hide, or show others of than the rest of the host sees, podman among it.
const HIDDEN: [&str; 5] = ["/tmp", "/var/tmp", "/home", "/root", "/run/user"];

/// Whether nothing follows from it that this process finds nothing at `path`.
#[must_use]
pub fn hides(path: &Path) -> bool {
    HIDDEN.iter().any(|hidden| path.starts_with(hidden))
}

/// Why a path could not be read, with what the sandbox may have to do with it.
#[must_use]
pub fn unread(path: &Path, error: &Error) -> String {
    if !hides(path) || !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) {
        return error.to_string();
    }
    format!(
        "{error}; of {} hostler.service sees nothing, or nothing but its own (PrivateTmp=, ProtectHome=), so only podman knows",
        HIDDEN.join(", ")
    )
}

/// Whether a socket could not be had because no socket of its kind may be made.
#[must_use]
pub fn forbids(error: &Error) -> bool {
    error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Why there is no connection, or no listener, over the Internet's protocols, with the fix where the sandbox forbids it.
#[must_use]
pub fn unconnected(error: &Error) -> String {
    if !forbids(error) {
        return error.to_string();
    }
    format!(
        "{error}; hostler.service makes no Internet sockets until a drop-in lets it: \"systemctl edit hostler\", in [Service] \
         RestrictAddressFamilies=AF_INET AF_INET6 and IPAddressAllow=localhost (or the other host's address), then \
         \"systemctl restart hostler\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_explained_by_the_sandbox() {
        let missing = Error::from_raw_os_error(2);
        let hidden = unread(Path::new("/var/tmp/m.gguf"), &missing);
        assert!(hidden.contains("PrivateTmp=") && hidden.contains("only podman"), "{hidden}");
        for (path, error) in [("/srv/m.gguf", 2), ("/tmpfs/m.gguf", 2), ("/tmp/m.gguf", 5)] {
            let error = Error::from_raw_os_error(error);
            assert_eq!(unread(Path::new(path), &error), error.to_string(), "{path}");
        }
    }

    #[test]
    fn only_a_forbidden_socket_is_explained_by_the_sandbox() {
        let refused = Error::from_raw_os_error(111);
        assert!(!unconnected(&refused).contains("systemctl"), "{}", unconnected(&refused));
        let forbidden = unconnected(&Error::from_raw_os_error(EAFNOSUPPORT));
        assert!(forbidden.contains("systemctl edit hostler"), "{forbidden}");
    }
}
