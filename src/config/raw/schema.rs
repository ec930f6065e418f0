//! The JSON schema, from what [`super`] says of the keys.

use super::RawFile;

/// The JSON schema of `hostler.toml`; that of a file in `models.d` is its `$defs/RawModel`.
#[must_use]
pub fn schema() -> serde_json::Value {
    let mut value = schemars::schema_for!(RawFile).to_value();
    hoist_required(&mut value);
    value
}

/// Fields are marked where they are documented; JSON schema wants the list beside the properties. A missing table or
/// key may be in another file, so only tables that are never merged get such a list: models and their weights.
fn hoist_required(value: &mut serde_json::Value) {
    let Some(defs) = value.get_mut("$defs").and_then(|d| d.as_object_mut()) else { return };
    for (name, def) in defs.iter_mut() {
        let Some(def) = def.as_object_mut() else { continue };
        let mut required = Vec::new();
        if let Some(properties) = def.get_mut("properties").and_then(|p| p.as_object_mut()) {
            for (key, property) in properties.iter_mut() {
                let mark = property.as_object_mut().and_then(|p| p.remove("required"));
                if mark.is_some() {
                    required.push(serde_json::Value::String(key.clone()));
                }
            }
        }
        if !required.is_empty() && name != "RawGpu" {
            def.insert("required".to_owned(), required.into());
        }
    }
}
