//! `GET /api/v1/openapi.json`: the pages about the host, as an OpenAPI document.
//!
//! Owner: none. Invariant: the schemas are made from the very types that are written, so the two cannot drift apart; the paths are those
//! of `proxy::port`.

use std::sync::LazyLock;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::control::document;
use crate::observe::timeline::Entry;
use crate::proxy::port::Act;
use crate::types::{ExternalStatus, GpuStatus, ModelStatus, Preview};

/// The document, as JSON. Made once: it is the same for everybody.
#[must_use]
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());
    &TEXT
}

fn document() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let paths = paths(&mut schemas);
    let mut components: Map<String, Value> = schemas.take_definitions(true);
    components.insert("Error".into(), error());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hostler",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What a host's models and devices do. Moments and durations are on the daemon's clock, bytes are bytes; what is \
                            unknown is null.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "key": [] }, {}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn paths(schemas: &mut SchemaGenerator) -> Value {
    let status = schemas.subschema_for::<document::Document<'static>>().to_value();
    let models = schemas.subschema_for::<Vec<ModelStatus>>().to_value();
    let externals = schemas.subschema_for::<Vec<ExternalStatus>>().to_value();
    let gpus = schemas.subschema_for::<Vec<GpuStatus>>().to_value();
    let jobs = schemas.subschema_for::<Vec<document::JobRow>>().to_value();
    let preview = schemas.subschema_for::<Preview>().to_value();
    // Named, so that who reads the stream finds the shape of its data.
    schemas.subschema_for::<Entry>();
    let id =
        parameter("id", "path", "A model's name, its slashes as they are or as %2F, or an alias.");
    let acts: Vec<&str> = Act::ALL.iter().map(|(word, _)| *word).collect();
    let mut act = parameter("act", "path", "What to do.");
    act["schema"]["enum"] = json!(acts);
    let begun = json!({ "type": "object", "required": ["job"], "properties": {
        "job": { "type": ["integer", "null"], "description": "The number of the job that does it; null: it is done." },
    }});
    let acted = json!({
        "summary": "Loads, unloads, pins, unpins, puts to sleep, wakes or measures a model.",
        "description": "Needs a key with admin = true.",
        "parameters": [id, act],
        "responses": { "200": body("Done.", &begun), "202": body("Begun.", &begun), "default": refused() },
    });
    let mut log = get(
        "What a model's container wrote last, and writes.",
        "text/event-stream",
        &json!({
            "type": "string", "description": "Events named line, their data a JSON string, and one named end when the container \
             has written its last. A stream that ends without it was cut off: the daemon leaves, or the key may not read it any more.",
        }),
    );
    log["get"]["parameters"] = json!([id]);
    let mut plan =
        get("What a load would do now. On the Unix socket alone.", "application/json", &preview);
    plan["get"]["parameters"] = json!([parameter("model", "query", "A model's name.")]);
    let events = json!({ "type": "string", "description":
        "Events: you (who listens), status (the whole status, whenever it changes, at most four times a second), notice (an Entry: \
         the last 256 first, then each as it happens)." });
    json!({
        "/api/v1/status": get("Everything, at one moment.", "application/json", &status),
        "/api/v1/models": get("All configured models of this host.", "application/json", &models),
        "/api/v1/externals": get("Models that run elsewhere, and how they are.", "application/json", &externals),
        "/api/v1/gpus": get("All devices and their ledgers.", "application/json", &gpus),
        "/api/v1/jobs": get("Jobs that run, and those that ended lately.", "application/json", &jobs),
        "/api/v1/events": get("What happens, as it happens.", "text/event-stream", &events),
        "/api/v1/models/{id}/log": log,
        "/api/v1/models/{id}/{act}": { "post": acted },
        "/debug/state": get("The same as the status. On the Unix socket alone.", "application/json", &status),
        "/debug/plan": plan,
    })
}

fn get(summary: &str, content_type: &str, schema: &Value) -> Value {
    json!({ "get": { "summary": summary, "responses": {
        "200": { "description": "It.", "content": { content_type: { "schema": schema } } },
        "default": refused(),
    }}})
}

fn body(description: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn refused() -> Value {
    body("Why not.", &json!({ "$ref": "#/components/schemas/Error" }))
}

fn parameter(name: &str, place: &str, description: &str) -> Value {
    let schema = json!({ "type": "string" });
    json!({ "name": name, "in": place, "required": true, "description": description, "schema": schema })
}

fn error() -> Value {
    json!({ "type": "object", "required": ["error"], "properties": { "error": {
        "type": "object", "required": ["message", "type", "code"], "properties": {
            "message": { "type": "string", "description": "For people: what, on which thing, why, and the fix." },
            "type": { "type": "string" },
            "code": { "type": "string", "description": "For programs; it never changes." },
        },
    }}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_there() {
        let document = document();
        let text = document.to_string();
        let names: Vec<&str> = text
            .split("\"#/components/schemas/")
            .skip(1)
            .map(|r| r.split('"').next().unwrap())
            .collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(document["components"]["schemas"].get(name).is_some(), "{name} is nowhere");
        }
        assert!(!text.contains("#/$defs/"), "a reference into a document that is not this one");
        assert!(document["components"]["schemas"]["Entry"]["properties"]["text"].is_object());
    }
}
