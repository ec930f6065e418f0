//! Documents against the shipped schema of the status, by a validator that is not ours. Also of tests on the real host.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

/// The schema as it is shipped.
fn shipped() -> Value {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/status.schema.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// The same, without tolerance: readers have to bear what is added later, but today nothing is there that is not described.
fn closed(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(closed);
            if map.get("properties").is_some_and(Value::is_object) {
                map.insert("additionalProperties".to_owned(), false.into());
            }
        }
        Value::Array(list) => list.iter_mut().for_each(closed),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What in a document is not as the schema says.
pub fn faults(document: &Value) -> Vec<String> {
    let mut schema = shipped();
    closed(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let shown =
        |error: jsonschema::ValidationError<'_>| format!("{}: {error}", error.instance_path());
    validator.iter_errors(document).map(shown).collect()
}

/// A document that has to be as the schema says.
pub fn check(document: &Value) {
    assert_eq!(faults(document), [""; 0], "{document:#}");
}
