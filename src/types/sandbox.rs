//! What the sandbox of `hostler.service` forbids on purpose, and how an administrator allows it.
//!
//! Invariant: whoever is refused something by the sandbox says what to write where; the words are here only.

use std::io::Error;

/// "Address family not supported by protocol": what `RestrictAddressFamilies=` answers, and a kernel without that family.
const EAFNOSUPPORT: i32 = 97;

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
    fn only_a_forbidden_socket_is_explained_by_the_sandbox() {
        let refused = Error::from_raw_os_error(111);
        assert!(!unconnected(&refused).contains("systemctl"), "{}", unconnected(&refused));
        let forbidden = unconnected(&Error::from_raw_os_error(EAFNOSUPPORT));
        assert!(forbidden.contains("systemctl edit hostler"), "{forbidden}");
    }
}
