//! `--config-file`: YAML (and so JSON too) with the names of the flags as keys.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ConfigError;
use super::flags::{Class, Flag, Kind, find, nearest};
use super::values::{QUESTIONS, same_value};

/// Largest config file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Sections of etcd's file whose keys are flags with a prefix in front.
const SECTIONS: [(&str, &str); 2] = [("client-transport-security", ""), ("peer-transport-security", "peer-")];

/// The flags that the file sets, as they would be typed.
pub(super) fn read(path: &str) -> Result<Vec<(&'static Flag, String)>, ConfigError> {
    let failed = |source| ConfigError::File { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(ConfigError::FileSyntax {
            path: path.into(),
            why: format!("{length} bytes, limit {FILE_BYTES_MAX}"),
        });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(&text).map_err(|why| ConfigError::FileSyntax { path: path.to_owned(), why })
}

fn parse(text: &str) -> Result<Vec<(&'static Flag, String)>, String> {
    let document: Option<BTreeMap<String, Value>> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for (key, value) in document.unwrap_or_default() {
        match SECTIONS.iter().find(|(section, _)| *section == key) {
            None => found.extend(entry(&key, value)?),
            Some((_, prefix)) => {
                let Value::Object(section) = value else { return Err(format!("{key:?} must be a section")) };
                for (inner, value) in section {
                    found.extend(entry(&format!("{prefix}{inner}"), value)?);
                }
            }
        }
    }
    agree(&found)?;
    Ok(found)
}

/// A file has no order, so an older name of a flag beside the flag itself must say the same.
fn agree(found: &[(&'static Flag, String)]) -> Result<(), String> {
    for (alias, value) in found {
        let Class::Alias(target) = alias.class else { continue };
        match found.iter().find(|(flag, _)| flag.name == target) {
            Some((flag, other)) if !same_value(flag, value, other) => {
                let name = alias.name;
                return Err(format!(
                    "{name:?} is {value} but {target:?} is {other}, and they are one flag; remove one"
                ));
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// One key. A key without a value says nothing.
fn entry(key: &str, value: Value) -> Result<Option<(&'static Flag, String)>, String> {
    let Some(flag) = find(key).filter(|flag| flag.name != "config-file" && !QUESTIONS.contains(&flag.name)) else {
        let hint = nearest(key).map(|name| format!(" (did you mean {name:?}?)")).unwrap_or_default();
        return Err(format!("unknown key {key:?}{hint}"));
    };
    let text = match value {
        Value::Null => return Ok(None),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) if flag.kind == Kind::Duration => format!("{number}ns"),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text,
        Value::Array(items) if flag.kind == Kind::List => {
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            items.ok_or_else(|| format!("{key:?} must be a list of texts"))?.join(",")
        }
        Value::Array(_) | Value::Object(_) => return Err(format!("{key:?} must be a single value")),
    };
    Ok(Some((flag, text)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(text: &str) -> BTreeMap<&'static str, String> {
        parse(text).unwrap().into_iter().map(|(flag, value)| (flag.name, value)).collect()
    }

    #[test]
    fn yaml_and_json_are_read_alike() {
        let yaml = "name: n1\nheartbeat-interval: 50\nlog-outputs: [stderr, /tmp/l]\nunsafe-no-fsync: true\nwal-dir:\n";
        let json = r#"{"name":"n1","heartbeat-interval":50,"log-outputs":["stderr","/tmp/l"],"unsafe-no-fsync":true}"#;
        assert_eq!(values(yaml), values(json));
        assert_eq!(values(yaml)["log-outputs"], "stderr,/tmp/l");
        assert_eq!(values(yaml).len(), 4);
    }

    #[test]
    fn durations_are_nanoseconds_or_texts() {
        let text = "compaction-sleep-interval: 5000000\nwarning-apply-duration: 2s";
        assert_eq!(values(text)["compaction-sleep-interval"], "5000000ns");
        assert_eq!(values(text)["warning-apply-duration"], "2s");
    }

    #[test]
    fn sections_are_flattened() {
        let text = "client-transport-security:\n  auto-tls: false\npeer-transport-security:\n  auto-tls: true\n";
        assert_eq!(values(text)["auto-tls"], "false");
        assert_eq!(values(text)["peer-auto-tls"], "true");
    }

    #[test]
    fn nonsense_is_refused_and_emptiness_is_not() {
        assert!(values("").is_empty());
        assert!(values("# nothing\n").is_empty());
        for text in ["nmae: x", "name: [a]", "name: {a: b}", "- a\n- b", "name: 'x", "config-file: x", "version: true"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("nmae: x").unwrap_err().contains("\"name\""));
    }
}
