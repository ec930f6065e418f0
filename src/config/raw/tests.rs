//! The schema says of every key what the code knows of it.

use super::*;

/// `(definition, key, property)` of every key.
pub(crate) fn keys(schema: &serde_json::Value) -> Vec<(String, String, serde_json::Value)> {
    let mut found = Vec::new();
    let mut visit = |name: &str, def: &serde_json::Value| {
        for (key, property) in def["properties"].as_object().into_iter().flatten() {
            found.push((name.to_owned(), key.clone(), property.clone()));
        }
    };
    visit("", schema);
    for (name, def) in schema["$defs"].as_object().unwrap() {
        visit(name, def);
    }
    found
}

#[test]
fn every_key_is_described_with_its_default() {
    for (table, key, property) in keys(&schema()) {
        let text = property["description"].as_str().unwrap_or_default();
        assert!(text.len() > 10, "{table} {key}: {property}");
        if !table.is_empty() {
            let said = text.contains("Default") || text.contains("Required");
            assert!(said, "{table} {key} says neither its default nor that it is required");
        }
        assert!(property.get("required").is_none_or(serde_json::Value::is_array), "{key}");
    }
}

#[test]
fn unknown_keys_are_refused_by_the_schema_too() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    for (name, def) in schema["$defs"].as_object().unwrap() {
        if def.get("properties").is_some() {
            assert_eq!(def["additionalProperties"], false, "{name}");
        }
    }
    assert_eq!(schema["$defs"]["RawModel"]["required"], serde_json::json!(["engine"]));
    assert!(schema.get("required").is_none(), "{schema:#}");
    assert!(schema["$defs"]["RawGpu"].get("required").is_none());
}

#[test]
fn limits_are_in_the_schema() {
    let schema = schema();
    let queue = &schema["$defs"]["RawServer"]["properties"]["max_queue"];
    assert_eq!((&queue["minimum"], &queue["maximum"]), (&1.into(), &65536.into()));
    assert_eq!(queue["default"], 512);
    let wait = &schema["$defs"]["RawServer"]["properties"]["max_wait"];
    assert_eq!(wait["type"], "string");
    assert_eq!(wait["default"], "240s");
}
