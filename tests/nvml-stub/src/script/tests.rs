//! Scripts as people write them.

use super::*;

#[test]
fn a_script_as_a_person_writes_it() {
    let script: Script = toml::from_str(
        r#"
        init = "driver-not-loaded"
        fault = { number = 26 }
        [[gpu]]
        uuid = "GPU-0"
        total = "24GiB"
        reserved = "500MiB"
        fault = "memory-not-supported"
        process_memory = "not-available"
        mig = false
        processes = [{ pid = 7, bytes = 1024, kind = "graphics" }]
        "#,
    )
    .unwrap();
    assert_eq!((script.init.number(), script.fault.number()), (9, 26));
    assert_eq!(script.gpus[0].total, Size(24 << 30));
    assert_eq!(script.gpus[0].fault, GpuFault::MemoryNotSupported);
    assert_eq!(script.gpus[0].processes[0].kind, Kind::Graphics);
}

#[test]
fn a_script_survives_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::new(root.path().join("state"));
    let mut script = Script::with_gpus(vec![Gpu::new("GPU-0", 1 << 30)]);
    script.fault = Code::Other { number: 26 };
    script.gpus[0].mig = Some(true);
    script.gpus[0].processes.push(Process { pid: 1, bytes: Size(2), kind: Kind::Compute });
    script.save(&dir).unwrap();
    assert_eq!(Script::load(&dir).unwrap(), script);
}

#[test]
fn a_typo_is_an_error_that_names_the_key_and_the_line() {
    let error = toml::from_str::<Script>("[[gpu]]\nuuid='a'\ntotal=1\nfalut='lost'\n");
    let text = error.unwrap_err().to_string();
    assert!(text.contains("falut") && text.contains("line 4"), "{text}");
}
