//! Weights that come in an image.

use crate::harness::{COUNT, count, engine, serving, skip_unless_wanted};

#[test]
fn a_model_whose_weights_are_an_image_answers() {
    skip_unless_wanted!();
    let model = testhost::assets::count_512().unwrap();
    let image = testhost::assets::model_image(&model, "count-512").unwrap();
    let toml = COUNT.replace(
        r#"{ path = "/var/lib/hostler/models/count-512.gguf" }"#,
        r#"{ image = "localhost/hostler/model-count-512:latest", path = "/models/count-512.gguf" }"#,
    );
    assert!(toml.contains("model-count-512"), "{toml}");
    let host = serving(&toml).unwrap();
    host.load_image(&image).unwrap();
    // Not by the file that lies on the host as well.
    host.root("rm /var/lib/hostler/models/count-512.gguf").unwrap();
    count(&host).check();
    let pid = engine(&host).unwrap();
    let args = host.root(&format!("tr '\\0' '\\n' </proc/{pid}/cmdline")).unwrap();
    let path = args.lines().skip_while(|arg| *arg != "-m").nth(1).unwrap().to_owned();
    assert!(path.ends_with("/models/count-512.gguf"), "{args}");
    let tried = host.try_root(&format!("touch /proc/{pid}/root{path}")).unwrap();
    assert!(tried.stderr.contains("Read-only"), "{}", tried.stderr);
    host.root("systemctl stop hostler.service").unwrap();
    assert_eq!(crate::harness::left_over(&host).unwrap(), "");
}
