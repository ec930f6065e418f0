//! How a container ended, and in which words it is told. PURE.

use std::fmt;

/// How a container's first process ended. What Hostler stops is asked for no ending, so none of them is its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// 137 is 128 and SIGKILL.
    pub code: i32,
    /// The kernel killed a process of its group for want of memory; `false` also where podman did not learn of it.
    pub out_of_memory: bool,
}

/// Where the kernel says whom it killed. In small letters, which finds it in any.
const LOOK: &str = "journalctl -k -g \"out of memory\"";
/// Where systemd-oomd says so, which kills before the kernel has to, and of which neither the kernel nor podman knows.
const LOOK_TOO: &str = "journalctl -u systemd-oomd";

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}", self.code)?;
        match self {
            Self { out_of_memory: true, .. } => {
                write!(
                    f,
                    ": the kernel killed a process of it for want of the host's memory, see {LOOK}"
                )
            }
            Self { code: 137, .. } => write!(
                f,
                ": killed by SIGKILL, and not by Hostler; often by the kernel for want of the host's memory, see {LOOK}, or by systemd-oomd, see {LOOK_TOO}"
            ),
            Self { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_told_from_an_end() {
        let text = |code, out_of_memory| Ending { code, out_of_memory }.to_string();
        assert_eq!(text(1, false), "exit code 1");
        let killed = text(137, false);
        assert!(killed.contains("SIGKILL, and not by Hostler; often by the kernel"), "{killed}");
        assert!(killed.contains(LOOK) && killed.ends_with(LOOK_TOO), "{killed}");
        // A worker was killed, and the engine ended for want of it.
        let starved = text(1, true);
        assert!(starved.starts_with("exit code 1: the kernel killed a process of it"), "{starved}");
        assert!(starved.ends_with(LOOK) && !text(137, true).contains("often"));
    }
}
