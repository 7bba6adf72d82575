//! The messages and methods of `server/proto`, read from those very files, and messages as JSON in etcd's spelling.
//!
//! So that one generated request can go out in both wire forms, and both kinds of answers can be judged by one set of rules.

use std::collections::HashMap;

use base64_simd::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

const FILES: [&str; 4] = [
    include_str!("../../proto/kv.proto"),
    include_str!("../../proto/rpc.proto"),
    include_str!("../../proto/lock.proto"),
    include_str!("../../proto/election.proto"),
];

/// All messages, enums and methods by name.
pub(crate) struct Schema {
    messages: HashMap<String, Vec<Field>>,
    enums: HashMap<String, Vec<(String, i64)>>,
    /// By `package.Service/Method`: the names of request and response.
    methods: HashMap<String, (String, String)>,
}

struct Field {
    number: u32,
    name: String,
    kind: String,
    repeated: bool,
}

impl Schema {
    pub(crate) fn new() -> Self {
        let mut schema = Self { messages: HashMap::new(), enums: HashMap::new(), methods: HashMap::new() };
        FILES.iter().for_each(|text| schema.read(text));
        schema
    }

    fn read(&mut self, text: &str) {
        let mut package = String::new();
        // What encloses the line: ("message", name), …
        let mut within: Vec<(String, String)> = Vec::new();
        for line in text.lines() {
            let line = line.split("//").next().unwrap_or_default().trim();
            let words: Vec<&str> = line.split([' ', '(', ')', ';', '=', '{']).filter(|word| !word.is_empty()).collect();
            let inner = within.last().map(|(what, name)| (what.as_str(), name.as_str()));
            match (inner, words.as_slice()) {
                (_, ["}"]) => drop(within.pop()),
                (None, ["package", name]) => package = (*name).to_owned(),
                (_, [what @ ("message" | "enum" | "service" | "oneof"), name, rest @ ..]) => {
                    match *what {
                        "message" => drop(self.messages.insert((*name).to_owned(), Vec::new())),
                        "enum" => drop(self.enums.insert((*name).to_owned(), Vec::new())),
                        _ => {}
                    }
                    if rest != ["}"] {
                        // Fields of a oneof are fields of its message.
                        let owner = if *what == "oneof" { inner.unwrap().1 } else { name };
                        let what = if *what == "oneof" { "message" } else { what };
                        within.push((what.to_owned(), owner.to_owned()));
                    }
                }
                (Some(("service", service)), ["rpc", name, rest @ ..]) => {
                    let types: Vec<&str> =
                        rest.iter().copied().filter(|word| !matches!(*word, "stream" | "returns")).collect();
                    self.methods.insert(
                        format!("{package}.{service}/{name}"),
                        (last(types[0]).to_owned(), last(types[1]).to_owned()),
                    );
                }
                (Some(("enum", name)), [value, number]) => {
                    self.enums.get_mut(name).unwrap().push(((*value).to_owned(), number.parse().unwrap()));
                }
                (Some(("message", name)), [rest @ .., kind, field, number]) => {
                    let repeated = rest == ["repeated"];
                    let (kind, name_of) = (last(kind).to_owned(), (*field).to_owned());
                    let field = Field { number: number.parse().unwrap(), name: name_of, kind, repeated };
                    self.messages.get_mut(name).unwrap().push(field);
                }
                _ => {}
            }
        }
        assert!(within.is_empty(), "unbalanced braces");
    }

    /// The names of a method's request and response.
    pub(crate) fn method(&self, path: &str) -> (&str, &str) {
        let (request, response) = &self.methods[path.trim_start_matches('/')];
        (request, response)
    }

    /// All methods, as `package.Service/Method`.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.keys().map(String::as_str)
    }

    /// A message from JSON in any spelling that etcd's gateway takes; `None` if that is not JSON of such a message.
    pub(crate) fn encode(&self, message: &str, json: &Value) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for (name, value) in json.as_object()? {
            let field = self.messages[message].iter().find(|field| field.name == *name || camel(&field.name) == *name);
            // Unknown fields are passed over, as in JSON.
            let Some(field) = field.filter(|_| !value.is_null()) else { continue };
            match value {
                Value::Array(items) if field.repeated => {
                    items.iter().try_for_each(|item| self.encode_field(field, item, &mut out))?;
                }
                _ if field.repeated => return None,
                value => self.encode_field(field, value, &mut out)?,
            }
        }
        Some(out)
    }

    fn encode_field(&self, field: &Field, value: &Value, out: &mut Vec<u8>) -> Option<()> {
        let bytes = match field.kind.as_str() {
            "bytes" => {
                let text = value.as_str()?.trim_end_matches('=');
                let bytes = STANDARD_NO_PAD.decode_to_vec(text).or_else(|_| URL_SAFE_NO_PAD.decode_to_vec(text));
                bytes.ok()?
            }
            "string" => value.as_str()?.as_bytes().to_vec(),
            kind if self.messages.contains_key(kind) => self.encode(kind, value)?,
            kind => {
                let number = match value {
                    Value::Bool(flag) if kind == "bool" => i64::from(*flag),
                    Value::Number(number) if kind != "bool" => number.as_i64()?,
                    Value::String(text) if kind != "bool" => match self.enums.get(kind) {
                        Some(names) => names.iter().find(|(name, _)| name == text)?.1,
                        None if kind == "uint64" => text.parse::<u64>().ok()? as i64,
                        None => text.parse().ok()?,
                    },
                    _ => return None,
                };
                varint(out, u64::from(field.number) << 3);
                varint(out, number as u64);
                return Some(());
            }
        };
        varint(out, u64::from(field.number) << 3 | 2);
        varint(out, bytes.len() as u64);
        out.extend_from_slice(&bytes);
        Some(())
    }

    /// A message as etcd's gateway would show it. What the schema does not know is shown by number, so that it is noticed.
    pub(crate) fn decode(&self, message: &str, bytes: &[u8]) -> Value {
        let mut fields = Map::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some((number, wire)) = take(&mut rest) else {
                fields.insert("broken".to_owned(), Value::from(STANDARD.encode_to_string(rest)));
                break;
            };
            let Some(field) = self.messages[message].iter().find(|field| field.number == number) else {
                fields.insert(format!("unknown field {number}"), Value::from(format!("{wire:?}")));
                continue;
            };
            let value = self.decode_field(field, wire);
            if field.repeated {
                let list = fields.entry(field.name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                list.as_array_mut().unwrap().push(value);
            } else if !is_zero(&value) {
                fields.insert(field.name.clone(), value);
            }
        }
        Value::Object(fields)
    }

    fn decode_field(&self, field: &Field, wire: Wire<'_>) -> Value {
        match (field.kind.as_str(), wire) {
            ("bytes", Wire::Bytes(bytes)) => Value::from(STANDARD.encode_to_string(bytes)),
            ("string", Wire::Bytes(bytes)) => Value::from(String::from_utf8_lossy(bytes)),
            ("bool", Wire::Number(number)) => Value::from(number != 0),
            ("int64", Wire::Number(number)) => Value::from((number as i64).to_string()),
            ("uint64", Wire::Number(number)) => Value::from(number.to_string()),
            ("uint32" | "int32", Wire::Number(number)) => Value::from(number),
            (kind, Wire::Number(number)) if self.enums.contains_key(kind) => {
                let name = self.enums[kind].iter().find(|(_, known)| *known == number as i64);
                // Gateways leave out what is zero.
                match name {
                    Some((_, 0)) if !field.repeated => Value::Null,
                    Some((name, _)) => Value::from(name.as_str()),
                    None => Value::from(number),
                }
            }
            (kind, Wire::Bytes(bytes)) if self.messages.contains_key(kind) => self.decode(kind, bytes),
            (kind, wire) => Value::from(format!("{kind} as {wire:?}")),
        }
    }
}

#[derive(Debug)]
enum Wire<'bytes> {
    Number(u64),
    Bytes(&'bytes [u8]),
}

/// Scalars that JSON leaves out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "0",
        Value::Number(number) => number.as_u64() == Some(0),
        _ => false,
    }
}

fn take<'bytes>(rest: &mut &'bytes [u8]) -> Option<(u32, Wire<'bytes>)> {
    let tag = take_varint(rest)?;
    let wire = match tag & 7 {
        0 => Wire::Number(take_varint(rest)?),
        2 => {
            let length = usize::try_from(take_varint(rest)?).ok()?;
            let (bytes, left) = rest.split_at_checked(length)?;
            *rest = left;
            Wire::Bytes(bytes)
        }
        _ => return None,
    };
    Some(((tag >> 3) as u32, wire))
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The other spelling of a field's name.
pub(crate) fn camel(name: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for letter in name.chars() {
        if letter == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.extend(letter.to_uppercase());
        } else {
            out.push(letter);
        }
    }
    out
}

/// Both alphabets, for generated requests.
pub(crate) fn base64(value: &[u8], url_safe: bool) -> String {
    if url_safe { URL_SAFE.encode_to_string(value) } else { STANDARD.encode_to_string(value) }
}

#[test]
fn messages_go_to_bytes_and_back() {
    let schema = Schema::new();
    let json = serde_json::json!({
        "compare": [{"result": "GREATER", "target": 2, "key": "YQ==", "modRevision": "-5", "range_end": "Yg"}],
        "success": [{"request_put": {"key": "_-8=", "value": null, "prev_kv": true, "unknown": [1]}}, {"request_range": {}}],
    });
    let bytes = schema.encode("TxnRequest", &json).unwrap();
    let back = serde_json::json!({
        "compare": [{"result": "GREATER", "target": "MOD", "key": "YQ==", "mod_revision": "-5", "range_end": "Yg=="}],
        "success": [{"request_put": {"key": "/+8=", "prev_kv": true}}, {"request_range": {}}],
    });
    assert_eq!(schema.decode("TxnRequest", &bytes), back);
    assert_eq!(schema.encode("PutRequest", &serde_json::json!({"key": 5})), None);
    assert_eq!(schema.method("/etcdserverpb.Watch/Watch"), ("WatchRequest", "WatchResponse"));
    assert_eq!(schema.method("/v3lockpb.Lock/Unlock"), ("UnlockRequest", "UnlockResponse"));
    let unknown = schema.decode("LockRequest", &[0x78, 1]);
    assert_eq!(unknown, serde_json::json!({"unknown field 15": "Number(1)"}));
}
