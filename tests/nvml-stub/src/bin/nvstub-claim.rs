//! Holds device memory until it is killed: `nvstub-claim UUID SIZE [UUID SIZE …]`.
//!
//! `nvstub-claim --look UUID` prints what the device's memory looks like instead, and ends.
//!
//! Prints `claimed` once it holds everything, then reads its standard input: a line with a size
//! resizes all claims and answers `resized`, the end of the input ends the program. Exit status 1:
//! the memory was not had; 2: wrong usage.

use std::io::BufRead as _;
use std::process::ExitCode;

use nvidia_ml::{Claim, Size, StateDir};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() || !arguments.len().is_multiple_of(2) {
        eprintln!("usage: nvstub-claim UUID SIZE [UUID SIZE ...] | --look UUID");
        return ExitCode::from(2);
    }
    let outcome = match &arguments[..] {
        [look, uuid] if look == "--look" => show(uuid),
        pairs => hold(pairs),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("nvstub-claim: {message}");
            ExitCode::FAILURE
        }
    }
}

fn show(uuid: &str) -> Result<(), String> {
    let usage = nvidia_ml::usage(&StateDir::from_env(), uuid).map_err(|e| e.to_string())?;
    let usage = usage.ok_or_else(|| format!("no device {uuid} in the script"))?;
    println!("used {} lingering {}", usage.used, usage.lingering);
    for process in usage.processes {
        println!("pid {} bytes {}", process.pid, process.bytes.0);
    }
    Ok(())
}

fn hold(arguments: &[String]) -> Result<(), String> {
    let dir = StateDir::from_env();
    let mut claims = Vec::new();
    for pair in arguments.chunks_exact(2) {
        let size: Size = pair[1].parse().map_err(|e| format!("{e}"))?;
        claims.push(Claim::take(&dir, &pair[0], size.0).map_err(|e| e.to_string())?);
    }
    println!("claimed");
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| format!("cannot read the standard input: {e}"))?;
        let size: Size = line.parse().map_err(|e| format!("{e}"))?;
        for claim in &mut claims {
            claim.resize(size.0).map_err(|e| e.to_string())?;
        }
        println!("resized");
    }
    Ok(())
}
