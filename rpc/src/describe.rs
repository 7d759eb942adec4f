//! What the declaration of a method tells: for the documents, `--help`, completion and programs.

use crate::method::{Allowed, Section};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt::Write;

/// One parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Param {
    /// Its key.
    pub name: String,
    /// What it takes, for people: `u64`, `string`, or the values of an enumeration.
    #[serde(rename = "type")]
    pub kind: String,
    /// The values of an enumeration; empty for other types.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// It must be given.
    pub required: bool,
    /// What it is if not given, where that is one value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// What it means, with its unit; Markdown.
    pub about: String,
}

/// A method, as declared.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Its name.
    pub name: &'static str,
    /// The title of the section it stands in.
    pub section: &'static str,
    /// What the section says before its methods.
    #[serde(skip)]
    pub section_text: &'static str,
    /// Callable before `framework_start_init`.
    pub startup: bool,
    /// Callable after it.
    pub runtime: bool,
    /// What it does; Markdown.
    pub about: &'static str,
    /// What it answers, and its own errors; Markdown.
    pub result: &'static str,
    /// The code for parameters that don't decode.
    pub decode_error: i64,
    /// Its parameters, in order of declaration.
    pub params: Vec<Param>,
    /// The JSON Schema (draft 2020-12) of its `params`; null if it takes none.
    pub schema: Value,
}

/// The schema of parameters of type `P`, whole in itself.
pub(crate) fn schema_of<P: JsonSchema>() -> Schema {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    SchemaGenerator::new(settings).into_root_schema_for::<P>()
}

pub(crate) fn description(
    section: Section,
    name: &'static str,
    allowed: Allowed,
    (about, result): (&'static str, &'static str),
    historical: bool,
    schema: Option<Schema>,
) -> Description {
    let schema = schema.map_or(Value::Null, Schema::into);
    Description {
        name,
        section: section.title,
        section_text: section.text,
        startup: allowed != Allowed::Runtime,
        runtime: allowed != Allowed::Startup,
        about,
        result,
        decode_error: if historical {
            crate::Error::INTERNAL_ERROR
        } else {
            crate::Error::INVALID_PARAMS
        },
        params: params(&schema),
        schema,
    }
}

fn params(schema: &Value) -> Vec<Param> {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let Some(members) = schema.get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    let described = members.iter().map(|(name, property)| {
        let values = values(property);
        Param {
            name: name.clone(),
            kind: kind(property, &values),
            required: required.contains(&name.as_str()),
            default: property.get("default").filter(|v| !v.is_null()).cloned(),
            about: text(property, "description"),
            values,
        }
    });
    described.collect()
}

fn text(schema: &Value, key: &str) -> String {
    let found = schema.get(key).and_then(Value::as_str).unwrap_or_default();
    found.replace('\n', " ")
}

/// The alternatives of a schema; null, which stands for "not given", is none.
fn alternatives(schema: &Value) -> Vec<&Value> {
    let lists = ["anyOf", "oneOf"].iter().filter_map(|key| schema.get(key));
    let all = lists.filter_map(Value::as_array).flatten();
    all.filter(|one| one.get("type").and_then(Value::as_str) != Some("null"))
        .collect()
}

/// The strings that an enumeration consists of.
fn values(schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(Value::Array(list)) = schema.get("enum") {
        found.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
    }
    found.extend(
        schema
            .get("const")
            .and_then(Value::as_str)
            .map(str::to_owned),
    );
    for one in alternatives(schema) {
        found.extend(values(one));
    }
    found
}

fn kind(schema: &Value, values: &[String]) -> String {
    if !values.is_empty() && !schema_is_array(schema) {
        return values
            .iter()
            .map(|value| format!("`{value}`"))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let [one, ..] = *alternatives(schema) {
        return kind(one, values);
    }
    let format = schema.get("format").and_then(Value::as_str);
    let name = match type_of(schema) {
        Some("integer") => match format.unwrap_or("int") {
            "uint8" => "u8",
            "uint16" => "u16",
            "uint32" => "u32",
            "uint64" | "uint" => "u64",
            "int32" => "i32",
            _ => "integer",
        },
        Some("string") if format == Some("uuid") => "UUID",
        Some("boolean") => "bool",
        Some("array") => {
            let items = schema.get("items").unwrap_or(&Value::Null);
            return format!("list of {}", kind(items, &[]));
        }
        Some(other) => other,
        None => "any",
    };
    name.to_owned()
}

fn schema_is_array(schema: &Value) -> bool {
    type_of(schema) == Some("array")
}

/// The type that is not null.
fn type_of(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::String(name) => Some(name),
        Value::Array(names) => names
            .iter()
            .filter_map(Value::as_str)
            .find(|n| *n != "null"),
        _ => None,
    }
}

impl Description {
    /// Its part of the reference, in Markdown, without the heading.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let phases = match (self.startup, self.runtime) {
            (true, false) => "*Before `framework_start_init` only.* ",
            (true, true) => "*At any time.* ",
            _ => "",
        };
        let mark = if self.decode_error == crate::Error::INTERNAL_ERROR {
            "† "
        } else {
            ""
        };
        // Writing to a string can't fail.
        let _ = writeln!(text, "{mark}{phases}{}", self.about);
        if self.params.is_empty() {
            text.push_str("\nNo parameters.\n");
        } else {
            text.push_str(
                "\n| parameter | type | default | meaning |\n| --- | --- | --- | --- |\n",
            );
            for param in &self.params {
                text.push_str(&param.row());
            }
        }
        // A list wants a line of its own before it.
        let gap = if self.result.starts_with("- ") {
            "\n\n"
        } else {
            " "
        };
        let _ = writeln!(text, "\nResult:{gap}{}", self.result);
        text
    }

    /// The schema with the method's name and text, for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut members = Map::new();
        if let Ok(Value::Object(own)) = serde_json::to_value(self) {
            members.extend(own);
        }
        members.remove("params");
        Value::Object(members)
    }
}

impl Param {
    fn row(&self) -> String {
        let name = if self.required {
            format!("**`{}`**", self.name)
        } else {
            format!("`{}`", self.name)
        };
        let default = match &self.default {
            Some(Value::String(text)) => format!("`{text}`"),
            Some(value) => value.to_string(),
            None => String::new(),
        };
        let about = self.about.replace('|', "\\|");
        format!("| {name} | {} | {default} | {about} |\n", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Colour {
        #[default]
        Red,
        Blue,
    }

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "its schema is what is looked at")]
    struct Params {
        /// Who,
        /// in two lines.
        name: String,
        /// In bytes.
        size: Option<u64>,
        #[serde(default)]
        colour: Colour,
        other: Option<Colour>,
        list: Option<Vec<u32>>,
        #[serde(default)]
        flag: bool,
        id: Option<uuid::Uuid>,
    }

    #[test]
    fn parameters_are_told_from_their_type() {
        let schema: Value = schema_of::<Params>().into();
        let found = params(&schema);
        let told: Vec<(&str, &str, bool, Option<Value>)> = found
            .iter()
            .map(|p| (&*p.name, &*p.kind, p.required, p.default.clone()))
            .collect();
        let colours = "`red`, `blue`";
        let expected = [
            ("name", "string", true, None),
            ("size", "u64", false, None),
            ("colour", colours, false, Some(json!("red"))),
            ("other", colours, false, None),
            ("list", "list of u32", false, None),
            ("flag", "bool", false, Some(json!(false))),
            ("id", "UUID", false, None),
        ];
        assert_eq!(told, expected);
        assert_eq!(found[0].about, "Who, in two lines.");
        assert_eq!(schema["additionalProperties"], json!(false));
    }
}
