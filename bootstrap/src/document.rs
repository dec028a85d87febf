//! The text of a bootstrap, JSON or YAML, as JSON values.
//!
//! Owns Envoy's rules for what a YAML scalar is. Knows nothing of any field; merging two documents
//! is for whoever has the messages, since only a message knows a list from a map from an `Any`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

/// How a bootstrap is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON: every file whose name does not say otherwise.
    Json,
    /// YAML, of which JSON is a part: `--config-yaml`, `.yaml` and `.yml`.
    Yaml,
}

impl Format {
    /// By the end of the file's name, as Envoy does it.
    pub fn of(path: &Path) -> Self {
        let end = path.extension().and_then(|end| end.to_str());
        match end.map(str::to_ascii_lowercase).as_deref() {
            Some("yaml" | "yml") => Self::Yaml,
            _ => Self::Json,
        }
    }
}

/// One bootstrap, an object. It may hold tokens and keys: `Debug` shows nothing of it.
#[derive(Clone, PartialEq)]
pub struct Document(Value);

/// Deeper nesting is no configuration; protobuf's own readers stop at 100.
const DEEPEST: usize = 100;

/// Values that aliases may make of a text, so that a few lines cannot fill the memory.
const MOST_VALUES: usize = 1 << 20;

impl Document {
    /// Reads `text`. Of YAML scalars, as Envoy reads them: quoted ones are strings; plain ones are
    /// null, YAML 1.1's booleans (`yes`, `off`), integers of 32 bits as numbers and longer ones as
    /// strings; everything else, fractions included, is a string, which proto3 JSON takes for every
    /// number. Of a key that is given twice, the last value counts.
    ///
    /// # Errors
    /// The text is not of that format, is nested more than 100 deep, or is no object.
    pub fn parse(text: &str, format: Format) -> Result<Self, DocumentError> {
        let value = match format {
            Format::Json => serde_json::from_str(text).map_err(|error| DocumentError {
                line: error.line(),
                column: error.column(),
                why: match error.classify() {
                    serde_json::error::Category::Eof => "the text ends too early",
                    _ => "this is no JSON",
                }
                .to_owned(),
            })?,
            Format::Yaml => yaml(text)?,
        };
        match value {
            Value::Object(_) => Ok(Self(value)),
            _ => Err(DocumentError {
                line: 1,
                column: 1,
                why: "a bootstrap is an object".to_owned(),
            }),
        }
    }

    /// The object.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The object, for whoever changes it.
    pub fn into_value(self) -> Value {
        self.0
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Document([redacted])")
    }
}

/// Where a text stops being a document, and why; quotes nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {why}")]
pub struct DocumentError {
    /// From 1.
    pub line: usize,
    /// From 1; 0 stands before the first character.
    pub column: usize,
    /// In words.
    pub why: String,
}

impl DocumentError {
    fn at(span: Span, why: impl Into<String>) -> Self {
        Self {
            line: span.start.line(),
            column: span.start.col() + 1,
            why: why.into(),
        }
    }
}

fn yaml(text: &str) -> Result<Value, DocumentError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| DocumentError {
            line: error.marker().line(),
            column: error.marker().col() + 1,
            why: error.info().to_owned(),
        })?;
        builder.take(event).map_err(|why| DocumentError::at(span, why))?;
    }
    Ok(builder.root.map_or(Value::Null, |root| root.value))
}

/// A value and how many it holds, itself included.
#[derive(Clone)]
struct Node {
    value: Value,
    size: usize,
}

/// A list or a map that is still open.
struct Open {
    anchor: usize,
    size: usize,
    what: Collection,
}

enum Collection {
    List(Vec<Value>),
    /// With the key whose value comes next.
    Map(Map<String, Value>, Option<String>),
}

/// Makes a value of the parser's events, without recursion.
#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    values: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>) -> Result<(), &'static str> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => Err("a second document is not read"),
            Event::DocumentStart(_) => Ok(()),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                self.add(node.ok_or("an alias of what contains it")?, 0)
            }
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(key) = self.awaited_key() {
                    *key = Some(text.into_owned());
                    return Ok(());
                }
                let value = scalar(&text, style, tag.as_deref());
                self.add(Node { value, size: 1 }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.push(anchor, Collection::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.push(anchor, Collection::Map(Map::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Err("an end without a beginning");
                };
                let value = match open.what {
                    Collection::List(list) => Value::Array(list),
                    Collection::Map(map, _) => Value::Object(map),
                };
                let size = open.size;
                self.add(Node { value, size }, open.anchor)
            }
        }
    }

    /// The place of the key that comes next, when one does.
    fn awaited_key(&mut self) -> Option<&mut Option<String>> {
        match self.open.last_mut() {
            Some(Open {
                what: Collection::Map(_, key @ None),
                ..
            }) => Some(key),
            _ => None,
        }
    }

    fn push(&mut self, anchor: usize, what: Collection) -> Result<(), &'static str> {
        if self.awaited_key().is_some() {
            return Err("a key is a list or a map");
        }
        if self.open.len() == DEEPEST {
            return Err("nested too deep");
        }
        self.open.push(Open {
            anchor,
            size: 1,
            what,
        });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), &'static str> {
        self.values += node.size;
        if self.values > MOST_VALUES {
            return Err("aliases make too much of this");
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.size += node.size;
        match &mut open.what {
            Collection::List(list) => list.push(node.value),
            Collection::Map(map, key) => {
                let key = key.take().ok_or("an alias is a key")?;
                map.insert(key, node.value);
            }
        }
        Ok(())
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    // `!!str`, and `!` alone, as this parser writes it.
    let is_text = tag.is_some_and(|tag| match tag.is_yaml_core_schema() {
        true => tag.suffix == "str",
        false => tag.handle.is_empty() && tag.suffix == "!",
    });
    if style != ScalarStyle::Plain || is_text {
        return text.into();
    }
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(truth) = boolean(text) {
        return truth.into();
    }
    match integer(text) {
        Some(number) => match i32::try_from(number) {
            Ok(number) => number.into(),
            Err(_) => number.to_string().into(),
        },
        None => text.into(),
    }
}

/// YAML 1.1's booleans: in small letters, in capitals, or with a capital first.
fn boolean(text: &str) -> Option<bool> {
    let rest = text.get(1..)?;
    let small = rest.bytes().all(|byte| byte.is_ascii_lowercase());
    let capitals = !text.bytes().any(|byte| !byte.is_ascii_uppercase());
    if !small && !capitals {
        return None;
    }
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "true" | "on" => Some(true),
        "n" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// Decimal, hexadecimal (`0x`) or octal (`0`), with a sign.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (radix, digits) = match hexadecimal {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    // `from_str_radix` would take a second sign.
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::{Document, Format};

    fn yaml(text: &str) -> Value {
        match Document::parse(text, Format::Yaml) {
            Ok(document) => document.into_value(),
            Err(error) => panic!("{text}: {error}"),
        }
    }

    /// The right side is what Envoy 1.40 showed in `/server_info` for `node.metadata`.
    #[test]
    fn plain_scalars_are_what_envoy_takes_them_for() {
        for (text, value) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("NULL", Value::Null),
            ("nULL", json!("nULL")),
            ("true", json!(true)),
            ("Yes", json!(true)),
            ("ON", json!(true)),
            ("y", json!(true)),
            ("off", json!(false)),
            ("N", json!(false)),
            ("oFF", json!("oFF")),
            ("nO", json!("nO")),
            (".inf", json!(".inf")),
            ("\u{e9}", json!("\u{e9}")),
            ("0", json!(0)),
            ("-7", json!(-7)),
            ("+7", json!(7)),
            ("0x1F", json!(31)),
            ("010", json!(8)),
            ("08", json!("08")),
            ("+-1", json!("+-1")),
            ("0x", json!("0x")),
            ("0X1f", json!(31)),
            ("-0x1f", json!(-31)),
            ("-010", json!(-8)),
            ("0o17", json!("0o17")),
            ("1_000", json!("1_000")),
            ("1:30", json!("1:30")),
            ("0xffffffff", json!("4294967295")),
            ("<<", json!("<<")),
            ("2147483647", json!(2_147_483_647)),
            ("2147483648", json!("2147483648")),
            ("-9223372036854775808", json!("-9223372036854775808")),
            ("9223372036854775808", json!("9223372036854775808")),
            ("0.5", json!("0.5")),
            ("1e3", json!("1e3")),
            ("1.10", json!("1.10")),
            ("0.25s", json!("0.25s")),
            ("'true'", json!("true")),
            ("\"5\"", json!("5")),
            ("!!str 5", json!("5")),
            ("! off", json!("off")),
            ("|\n  5\n", json!("5\n")),
        ] {
            assert_eq!(yaml(&format!("a: {text}"))["a"], value, "{text}");
        }
    }

    #[test]
    fn lists_maps_anchors_and_json_are_read() {
        let text = "
a: &list
  - {b: 1, 2: two}
  - [x, 'y']
c: *list
d: {}
a2: first
a2: last
";
        let list = json!([{ "b": 1, "2": "two" }, ["x", "y"]]);
        let wanted = json!({ "a": list, "c": list, "d": {}, "a2": "last" });
        assert_eq!(yaml(text), wanted);
        let json = wanted.to_string();
        assert_eq!(yaml(&json), wanted);
        assert_eq!(Document::parse(&json, Format::Json).unwrap().value(), &wanted);
    }

    #[test]
    fn what_is_no_document_is_said_with_its_place() {
        let deep = format!("a: {}{}", "[".repeat(100), "]".repeat(100));
        let mut laughs = String::from("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
        for level in 1..9 {
            let alias = format!("*a{}", level - 1);
            let line = format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", "));
            laughs.push_str(&line);
        }
        for (text, format, line, why) in [
            ("{\"a\": ", Format::Json, 1, "too early"),
            ("", Format::Json, 1, "too early"),
            ("{\n a}", Format::Json, 2, "no JSON"),
            ("[1]", Format::Json, 1, "object"),
            ("", Format::Yaml, 1, "object"),
            ("word", Format::Yaml, 1, "object"),
            ("a: 1\n---\nb: 2", Format::Yaml, 2, "second document"),
            ("a: &x [*x]", Format::Yaml, 1, "contains it"),
            ("? [a]\n: b", Format::Yaml, 1, "key"),
            ("a:\n  - b\n c", Format::Yaml, 3, ""),
            (deep.as_str(), Format::Yaml, 1, "too deep"),
            (laughs.as_str(), Format::Yaml, 6, "too much"),
        ] {
            let error = Document::parse(text, format).expect_err(text);
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
        assert!(Document::parse(&deep[..deep.len() - 1].replacen('[', "", 1), Format::Yaml).is_ok());
    }

    #[test]
    fn the_name_of_a_file_says_how_it_is_written() {
        for (path, format) in [
            ("a.yaml", Format::Yaml),
            ("a.YML", Format::Yaml),
            ("a.json", Format::Json),
            ("/dev/stdin", Format::Json),
            ("yaml", Format::Json),
        ] {
            assert_eq!(Format::of(Path::new(path)), format, "{path}");
        }
    }

    #[test]
    fn arbitrary_texts_never_panic() {
        let pieces = [
            "a",
            ": ",
            ":",
            "- ",
            "-",
            "\n",
            "\n  ",
            "\n    ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "? ",
            "&x ",
            "*x",
            "!!str ",
            "!<",
            "!e!t ",
            "%TAG ! x\n",
            "%YAML 1.1\n",
            "---\n",
            "...\n",
            "'",
            "\"",
            "\\x4",
            "\\u12",
            "|\n",
            ">-2\n",
            "#",
            "\t",
            "\r",
            "\0",
            "\u{feff}",
            "\u{e9}",
            "\u{10ffff}",
            "0x",
            "<<: ",
            "@",
            "`",
        ];
        // A fixed sequence (Knuth's multiplier), so that a failure is seen again.
        let mut state = 1u64;
        let mut pick = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap_or(0) % below
        };
        let mut documents = 0;
        for _ in 0..50_000 {
            let text: String = (0..pick(16)).map(|_| pieces[pick(pieces.len())]).collect();
            for format in [Format::Yaml, Format::Json] {
                documents += usize::from(Document::parse(&text, format).is_ok());
            }
        }
        assert!(documents > 100, "{documents} texts were documents at all");
    }
}
