//! Bytes that nobody meant, for the parsers of this crate; `make fuzz SECONDS=n`.
//!
//! Purpose: each target takes bytes and asserts what must hold for all of them. Owner: the tests named `fuzz_…`, beside what they try.
//! A plain run plays the corpus in `tests/fuzz/corpus/TARGET`. With the feature `fuzzing`, libFuzzer goes on from there for
//! `HOSTLER_FUZZ_SECONDS`, led by what each input reaches in this crate (`tests/fuzz/rustc.sh` puts the counters in), and keeps what it
//! learnt below `HOSTLER_FUZZ_DIR`. Invariant: an input that fails is on disk and printed, so that it can be put into the corpus.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// Tries `target` with the corpus of that name and with what becomes of it. `words`: what its format is made of.
pub(crate) fn fuzz(name: &'static str, words: &[&str], target: fn(&[u8])) {
    fuzz_from(name, &[], words, target);
}

/// The same with seeds beside the corpus.
pub(crate) fn fuzz_from(name: &'static str, seeds: &[Vec<u8>], words: &[&str], target: fn(&[u8])) {
    let dir = corpus(name);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    let read = files.iter().map(|file| std::fs::read(file).unwrap());
    for input in read.chain(seeds.iter().cloned()) {
        attempt(name, &input, target);
    }
    #[cfg(feature = "fuzzing")]
    guided::go_on(name, seeds, words, target);
    #[cfg(not(feature = "fuzzing"))]
    let _ = words;
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

fn attempt(name: &str, input: &[u8], target: fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        println!("{name} failed on b\"{}\"", input.escape_ascii());
        resume_unwind(panic);
    }
}

/// Cuts bytes at a place that depends on them.
pub(crate) fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let sum =
        bytes.iter().fold(7_usize, |sum, b| sum.wrapping_mul(31).wrapping_add(usize::from(*b)));
    bytes.split_at(sum % (bytes.len() + 1))
}

#[test]
fn fuzz_config() {
    use crate::config::{Defaults, Source, parse};
    let words = [
        "[models.m]\n",
        "engine = ",
        "\"vllm\"",
        "[gpu]\n",
        "vram = \"1GiB\"\n",
        "= true",
        "[server]\n",
        "\n",
    ];
    fuzz("config", &words, |input| {
        let text = String::from_utf8_lossy(input).into_owned();
        if let Err(errors) = parse(&[Source::settings("/etc/x.toml", text)], &Defaults::system()) {
            assert!(!errors.to_string().is_empty());
        }
    });
}

#[cfg(feature = "fuzzing")]
mod guided {
    //! libFuzzer in place of a test's end: its driver ends the process, by 0 when the time is up.

    use std::ffi::{CString, c_char, c_int};
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::{Path, PathBuf};
    use std::ptr::null_mut;
    use std::sync::OnceLock;

    // Its archive is what is wanted, and its `LLVMFuzzerTestOneInput`, which calls `rust_fuzzer_test_input`.
    use libfuzzer_sys as _;

    /// The largest input, bytes.
    const LENGTH_MAX: usize = 4096;

    type Target = fn(&[u8]);

    /// libFuzzer calls a plain function.
    static TARGET: OnceLock<(&'static str, Target)> = OnceLock::new();

    unsafe extern "C" {
        fn LLVMFuzzerRunDriver(
            argc: *mut c_int,
            argv: *mut *mut *mut c_char,
            attempt: unsafe extern "C" fn(*const u8, usize) -> c_int,
        ) -> c_int;
        fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> c_int;
    }

    #[unsafe(no_mangle)]
    extern "Rust" fn rust_fuzzer_test_input(input: &[u8]) -> i32 {
        let (name, target) = TARGET.get().unwrap();
        // A panic that comes out of this ends the process, and libFuzzer writes the input down.
        super::attempt(name, input, *target);
        0
    }

    /// Where what was learnt about `name` is kept, and where inputs that fail go.
    fn dir(kind: &str, name: &str) -> PathBuf {
        let dir =
            std::env::var_os("HOSTLER_FUZZ_DIR").expect("HOSTLER_FUZZ_DIR: run tests/fuzz.sh");
        let dir = Path::new(&dir).join(kind).join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// In libFuzzer's own form: `"…"` a line, with `\xNN` for what is not plain.
    fn dictionary(words: &[&str]) -> String {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b" ./:;=-_".contains(b);
        let byte =
            |b: u8| if plain(&b) { char::from(b).to_string() } else { format!("\\x{b:02X}") };
        let line = |word: &&str| format!("\"{}\"\n", word.bytes().map(byte).collect::<String>());
        words.iter().map(line).collect()
    }

    /// Never comes back.
    pub(super) fn go_on(name: &'static str, seeds: &[Vec<u8>], words: &[&str], target: Target) {
        let seconds = std::env::var("HOSTLER_FUZZ_SECONDS").expect("HOSTLER_FUZZ_SECONDS");
        let (learnt, failed, made) = (dir("learnt", name), dir("failed", name), dir("made", name));
        std::fs::write(made.join("words"), dictionary(words)).unwrap();
        let (dict, made) = (made.join("words"), dir("made", &format!("{name}/seeds")));
        for (n, seed) in seeds.iter().enumerate() {
            std::fs::write(made.join(n.to_string()), seed).unwrap();
        }
        assert!(TARGET.set((name, target)).is_ok(), "one target for each process");
        let option =
            |key: &str, path: &Path| [key.as_bytes(), path.as_os_str().as_bytes()].concat();
        let mut args = vec![
            b"hostler".to_vec(),
            format!("-max_total_time={seconds}").into_bytes(),
            format!("-max_len={LENGTH_MAX}").into_bytes(),
            // Seconds; without it one input may take twenty minutes.
            b"-timeout=10".to_vec(),
            b"-print_final_stats=1".to_vec(),
            option("-dict=", &dict),
            option("-artifact_prefix=", &failed.join("")),
        ];
        // New inputs go into the first directory.
        args.extend([learnt, super::corpus(name), made].map(|dir| option("", &dir)));
        let args: Vec<CString> = args.into_iter().map(|arg| CString::new(arg).unwrap()).collect();
        let mut pointers: Vec<*mut c_char> =
            args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
        let mut count = c_int::try_from(pointers.len()).unwrap();
        pointers.push(null_mut());
        let mut all = pointers.as_mut_ptr();
        // SAFETY: `count` strings and a null, all of which outlive the call; the callback is libfuzzer-sys's own.
        let code = unsafe { LLVMFuzzerRunDriver(&mut count, &mut all, LLVMFuzzerTestOneInput) };
        std::process::exit(code);
    }
}
