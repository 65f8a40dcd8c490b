//! JSON, as people and applications give it, and the format a plug-in names in its manifest.

use bytes::Bytes;
use dvm_core::state::Payload;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A command or configuration in the plug-in's format. For `bytes`, text is taken as it is.
///
/// # Errors
/// If the format cannot express it.
pub(crate) fn from_json(payload: Payload, value: &Value) -> Result<Bytes, String> {
    match (payload, value) {
        (Payload::Msgpack, value) => {
            let bytes = rmp_serde::to_vec_named(value);
            bytes.map(Bytes::from).map_err(|error| format!("it cannot be put into MessagePack: {error}"))
        }
        (Payload::Bytes, Value::String(text)) => Ok(text.clone().into()),
        (Payload::Json | Payload::Bytes, value) => Ok(value.to_string().into()),
    }
}

/// A reply as JSON; nothing at all is `null`. Of `bytes`, text is a string and anything else an array of numbers.
///
/// # Errors
/// If it is not in the plug-in's format, or JSON cannot express it.
pub(crate) fn to_json(payload: Payload, reply: &[u8]) -> Result<Value, String> {
    if reply.is_empty() && payload != Payload::Bytes {
        return Ok(Value::Null);
    }
    match payload {
        Payload::Msgpack => {
            rmp_serde::from_slice(reply).map_err(|error| format!("the reply does not fit into JSON: {error}"))
        }
        Payload::Json => {
            serde_json::from_slice(reply).map_err(|error| format!("the reply is not JSON: {error}"))
        }
        Payload::Bytes => Ok(match std::str::from_utf8(reply) {
            Ok(text) => text.into(),
            Err(_) => reply.iter().copied().map(Value::from).collect(),
        }),
    }
}

/// A plug-in's configuration, from JSON text by key.
///
/// # Errors
/// If a value is not JSON, or the format cannot express it.
pub(super) fn config(payload: Payload, config: &BTreeMap<String, String>) -> Result<Bytes, String> {
    let values = config.iter().map(|(key, text)| match serde_json::from_str(text) {
        Ok(value) => Ok((key.clone(), value)),
        Err(error) => Err(format!("the value of {key} is not JSON: {error}")),
    });
    from_json(payload, &Value::Object(values.collect::<Result<Map<_, _>, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_goes_through_each_format_and_comes_back() {
        let value = json!({"add": 3, "deep": [null, true, -1.5, "text"]});
        for payload in [Payload::Msgpack, Payload::Json] {
            let bytes = from_json(payload, &value).expect("JSON fits");
            assert_eq!(to_json(payload, &bytes), Ok(value.clone()));
        }
        assert_eq!(to_json(Payload::Bytes, b"text"), Ok(json!("text")));
        assert_eq!(to_json(Payload::Bytes, b"\xff\x00"), Ok(json!([255, 0])));
        assert_eq!(to_json(Payload::Msgpack, b""), Ok(Value::Null));
        assert!(to_json(Payload::Msgpack, b"\xc1").is_err());
    }

    #[test]
    fn a_configuration_is_one_object() {
        let text = BTreeMap::from([("step".to_owned(), "2".to_owned()), ("name".into(), "\"x\"".into())]);
        let bytes = config(Payload::Json, &text).expect("JSON");
        assert_eq!(bytes, r#"{"name":"x","step":2}"#.as_bytes());
        let bad = BTreeMap::from([("step".to_owned(), "two".to_owned())]);
        assert!(config(Payload::Json, &bad).is_err());
    }
}
