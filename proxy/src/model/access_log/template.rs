//! Formats of lines: text with command operators in it, and JSON whose texts have them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::FormatError;
use super::json;
use super::operator::Operator;

/// Envoy's format of a text line where none is configured.
const DEFAULT: &str = "[%START_TIME%] \
    \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// A parsed text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text as it stands; never empty.
    Literal(Arc<str>),
    /// A fact.
    Operator(Operator),
}

/// A parsed JSON object, laid out as one line: members are sorted by name, as Envoy's are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonTemplate(Vec<JsonPiece>);

/// A piece of a [`JsonTemplate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonPiece {
    /// JSON as it stands: braces, names, everything that is the same in every line.
    Literal(Arc<str>),
    /// A fact as a JSON value of its own type: a number is a number, an absent one null.
    Value(Operator),
    /// A JSON string of several pieces.
    Text(Template),
}

impl Template {
    /// The pieces in order; literals never follow each other.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// The command operators in order.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::Operator(operator) => Some(operator),
        })
    }

    /// Envoy's format where none is configured.
    ///
    /// # Errors
    /// None: the text is a constant, and a test parses it.
    pub fn envoy_default() -> Result<Self, FormatError> {
        Self::parse(DEFAULT)
    }

    /// Parses a text with Envoy's command operators (its documentation, "Command Operators").
    ///
    /// # Errors
    /// [`FormatError`]: whatever begins with a percent sign and cannot be carried out.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            let (before, marked) = rest.split_at(rest.find('%').unwrap_or(rest.len()));
            literal.push_str(before);
            at += before.len();
            if marked.starts_with("%%") {
                literal.push('%');
                at += 2;
            } else if !marked.is_empty() {
                let command = Command::read(marked).ok_or(FormatError::Syntax(at))?;
                let operator = Operator::new(command.name, command.arguments, command.max_length)?;
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                }
                pieces.push(Piece::Operator(operator));
                at += command.length;
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Self(pieces))
    }
}

/// A command operator as it is written.
struct Command<'a> {
    name: &'a str,
    arguments: Option<&'a str>,
    max_length: Option<usize>,
    /// Bytes of all of it, percent signs included.
    length: usize,
}

impl<'a> Command<'a> {
    /// Reads `%NAME%`, `%NAME(arguments)%`, `%NAME:7%` or `%NAME(arguments):7%` at the start of `text`.
    fn read(text: &'a str) -> Option<Self> {
        let body = text.strip_prefix('%')?;
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let name = &body[..body.find(|c| !is_name(c)).unwrap_or(body.len())];
        if name.is_empty() {
            return None;
        }
        let after = &body[name.len()..];
        let Some(inner) = after.strip_prefix('(') else {
            let (max_length, end) = end_of_command(after)?;
            return Some(Self {
                name,
                arguments: None,
                max_length,
                length: 1 + name.len() + end,
            });
        };
        // Parentheses end where the command can end, so that arguments may have some of their own.
        let line = &inner[..inner.find('\n').unwrap_or(inner.len())];
        line.match_indices(')').find_map(|(close, _)| {
            let (max_length, end) = end_of_command(&inner[close + 1..])?;
            Some(Self {
                name,
                arguments: Some(&inner[..close]),
                max_length,
                length: 1 + name.len() + 1 + close + 1 + end,
            })
        })
    }
}

/// Reads `%` or `:7%`: the number, and how long it is.
fn end_of_command(text: &str) -> Option<(Option<usize>, usize)> {
    if text.starts_with('%') {
        return Some((None, 1));
    }
    let digits = text.strip_prefix(':')?;
    let digits = &digits[..digits.find(|c: char| !c.is_ascii_digit())?];
    let number = digits.parse().ok()?;
    let end = 1 + digits.len();
    text[end..].starts_with('%').then_some((Some(number), end + 1))
}

impl JsonTemplate {
    /// The pieces in order.
    pub fn pieces(&self) -> &[JsonPiece] {
        &self.0
    }

    /// Parses the members of Envoy's `json_format`. Objects and lists nest, as deep as the caller lets them.
    ///
    /// # Errors
    /// [`FormatError::Member`]: the text that cannot be carried out, by the path to it.
    pub fn parse(members: &Map<String, Value>) -> Result<Self, FormatError> {
        let mut layout = Layout::default();
        layout.object(members, "json_format")?;
        layout.literal.push('\n');
        layout.flush();
        Ok(Self(layout.pieces))
    }
}

#[derive(Default)]
struct Layout {
    pieces: Vec<JsonPiece>,
    literal: String,
}

impl Layout {
    fn flush(&mut self) {
        if !self.literal.is_empty() {
            let literal = std::mem::take(&mut self.literal);
            self.pieces.push(JsonPiece::Literal(literal.into()));
        }
    }

    fn object(&mut self, members: &Map<String, Value>, path: &str) -> Result<(), FormatError> {
        let mut members: Vec<_> = members.iter().collect();
        members.sort_by_key(|(name, _)| *name);
        self.literal.push('{');
        for (index, (name, value)) in members.into_iter().enumerate() {
            if index > 0 {
                self.literal.push(',');
            }
            self.string(name);
            self.literal.push(':');
            self.value(value, &format!("{path}.{name}"))?;
        }
        self.literal.push('}');
        Ok(())
    }

    fn value(&mut self, value: &Value, path: &str) -> Result<(), FormatError> {
        match value {
            Value::Null | Value::Bool(_) => self.literal.push_str(&value.to_string()),
            Value::Number(number) => self.literal.push_str(&json::number(number)),
            Value::String(text) => self.text(text, path)?,
            Value::Array(values) => {
                self.literal.push('[');
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        self.literal.push(',');
                    }
                    self.value(value, &format!("{path}[{index}]"))?;
                }
                self.literal.push(']');
            }
            Value::Object(members) => self.object(members, path)?,
        }
        Ok(())
    }

    fn text(&mut self, text: &str, path: &str) -> Result<(), FormatError> {
        let template = Template::parse(text).map_err(|source| FormatError::Member {
            member: path.to_owned(),
            source: Box::new(source),
        })?;
        match template.pieces() {
            [] => self.string(""),
            [Piece::Literal(text)] => self.string(text),
            [Piece::Operator(operator)] => {
                self.flush();
                self.pieces.push(JsonPiece::Value(operator.clone()));
            }
            _ => {
                self.flush();
                self.pieces.push(JsonPiece::Text(template));
            }
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.literal.push_str(&Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::super::operator::{AddressPart, Header, HeaderMap, Place};
    use super::super::time_format::TimeFormat;
    use super::*;

    fn parse(text: &str) -> Vec<Piece> {
        Template::parse(text).unwrap().0
    }

    fn literal(text: &str) -> Piece {
        Piece::Literal(text.into())
    }

    #[test]
    fn texts_become_operators_and_what_stands_between() {
        let header = |of, name: &str, alternative: Option<&str>, max_length| {
            Piece::Operator(Operator::Header(Header {
                of,
                name: name.into(),
                alternative: alternative.map(Into::into),
                max_length,
            }))
        };
        let operator = Piece::Operator;
        for (text, pieces) in [
            ("", vec![]),
            ("a\n", vec![literal("a\n")]),
            ("100%%", vec![literal("100%")]),
            ("%%%%BYTES_SENT", vec![literal("%%BYTES_SENT")]),
            (
                "%BYTES_SENT%%%x%BYTES_SENT()%",
                vec![
                    operator(Operator::BytesSent),
                    literal("%x"),
                    operator(Operator::BytesSent),
                ],
            ),
            (
                "%REQ(X-A?:PATH):10%%RESP(Date)%%TRAILER(a?)%",
                vec![
                    header(HeaderMap::Request, "x-a", Some(":path"), Some(10)),
                    header(HeaderMap::Response, "date", None, None),
                    header(HeaderMap::Trailer, "a", None, None),
                ],
            ),
            (
                "%START_TIME(a)b)%é%START_TIME()%",
                vec![
                    operator(Operator::StartTime(TimeFormat::parse("a)b").unwrap())),
                    literal("é"),
                    operator(Operator::StartTime(TimeFormat::default())),
                ],
            ),
            (
                "%UPSTREAM_LOCAL_PORT%%UPSTREAM_HOST%%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
                vec![
                    operator(Operator::Address(Place::UpstreamLocal, AddressPart::Port)),
                    operator(Operator::Address(Place::UpstreamHost, AddressPart::Whole)),
                    operator(Operator::Address(
                        Place::DownstreamDirectRemote,
                        AddressPart::WithoutPort,
                    )),
                ],
            ),
        ] {
            assert_eq!(parse(text), pieces, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_by_name() {
        for (text, why) in [
            ("a%", "begins at byte 1"),
            ("% %", "begins at byte 0"),
            ("%bytes_sent%", "begins at byte 0"),
            ("%BYTES_SENT", "begins at byte 0"),
            ("%BYTES_SENT(%", "begins at byte 0"),
            ("%BYTES_SENT:a%", "begins at byte 0"),
            ("%REQ(A):99999999999999999999%", "begins at byte 0"),
            ("%REQ(a\nb)%", "begins at byte 0"),
            ("x%FOO%", "%FOO% is not a command operator"),
            ("%FOO_ADDRESS%", "%FOO_ADDRESS% is not"),
            ("%PORT%", "%PORT% is not"),
            ("%CEL(1)%", "%CEL% is not supported"),
            ("%START_TIME_LOCAL%", "%START_TIME_LOCAL% is not supported"),
            ("%DYNAMIC_METADATA()%", "%DYNAMIC_METADATA% needs arguments"),
            ("%METADATA(ROUTE:a)%", "only DYNAMIC"),
            ("%QUERY_PARAM%", "%QUERY_PARAM% needs arguments"),
            ("%QUERY_PARAMS(RAW)%", "only ORIG"),
            ("%PATH(X)%", "write WQ or NQ"),
            ("%PATH(NQ:X)%", "write ORIG, PATH"),
            ("%PATH(NQ:PATH:x)%", "at most two"),
            ("%COMMON_DURATION%", "%COMMON_DURATION% needs arguments"),
            ("%COMMON_DURATION(DS_RX_BEG)%", "two moments"),
            ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:s)%", "ms, us or ns"),
            ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us:x)%", "at most three"),
            ("%COMMON_DURATION(DS_HS_END:DS_TX_END)%", "downstream connection"),
            ("%VIRTUAL_HOST_NAME%", "%VIRTUAL_HOST_NAME% is not a command"),
            ("%STREAM_ID(x)%", "%STREAM_ID% takes no arguments"),
            (
                "%GRPC_STATUS_NUMBER(X)%",
                "%GRPC_STATUS_NUMBER% takes no arguments",
            ),
            ("%BYTES_SENT(x)%", "%BYTES_SENT% takes no arguments"),
            ("%DURATION:0%", "%DURATION% takes no arguments and no length"),
            ("%START_TIME(x):3%", "%START_TIME% takes no length"),
            ("%REQ%", "%REQ% needs arguments"),
            ("%REQ()%", "%REQ% needs arguments"),
            ("%REQ(a?b?c)%", "%REQ(a?b?c)%: at most one"),
            ("%REQ(a b)%", "%REQ(a b)%: a header's name"),
            ("%START_TIME(%-d)%", "a flag, width or modifier"),
            ("%GRPC_STATUS(x)%", "CAMEL_STRING"),
            ("%REQUESTED_SERVER_NAME(X)%", "SNI_ONLY"),
        ] {
            let error = Template::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn json_is_sorted_and_only_what_changes_is_a_piece_of_its_own() {
        let json = serde_json::json!({
            "b": "%BYTES_SENT%",
            "a\"": {"z": [1000.0, -1, 0.5, true, null, "%%"], "y": ""},
            "c": "%BYTES_SENT% b",
        });
        let Value::Object(members) = json else {
            unreachable!()
        };
        let literal = |text: &str| JsonPiece::Literal(text.into());
        assert_eq!(
            JsonTemplate::parse(&members).unwrap().pieces(),
            [
                literal(r#"{"a\"":{"y":"","z":[1000,-1,0.5,true,null,"%"]},"b":"#),
                JsonPiece::Value(Operator::BytesSent),
                literal(",\"c\":"),
                JsonPiece::Text(Template::parse("%BYTES_SENT% b").unwrap()),
                literal("}\n"),
            ]
        );
        let wrong = serde_json::json!({"a": {"b": ["", "%FOO%"]}});
        let Value::Object(wrong) = wrong else {
            unreachable!()
        };
        assert_eq!(
            JsonTemplate::parse(&wrong).unwrap_err().to_string(),
            "json_format.a.b[1]: %FOO% is not a command operator"
        );
    }

    #[test]
    fn no_text_whatever_makes_parsing_panic() {
        // Texts of the parts that mean something, in random order, so that they come near to operators.
        const PARTS: [&str; 22] = [
            "%",
            "%",
            "%",
            "(",
            ")",
            ":",
            "7",
            "REQ",
            "START_TIME",
            "BYTES_SENT",
            "?",
            ":PATH",
            "\n",
            "é",
            "%E3S",
            "%Y",
            "99999999999999999999",
            " ",
            "a",
            "\u{1f600}",
            "*",
            "E",
        ];
        let mut random = fastrand::Rng::with_seed(4);
        let mut parsed = 0;
        for _ in 0..200_000 {
            let text: String = (0..random.usize(0..12))
                .map(|_| PARTS[random.usize(..PARTS.len())])
                .collect();
            if let Ok(template) = Template::parse(&text) {
                let operators = template.pieces().iter().any(|p| matches!(p, Piece::Operator(_)));
                parsed += usize::from(operators);
            }
        }
        assert!(parsed > 100, "the texts come near enough to operators: {parsed}");
    }

    #[test]
    fn envoys_default_is_parsed() {
        let template = Template::envoy_default().unwrap();
        let operators = template
            .pieces()
            .iter()
            .filter(|p| matches!(p, Piece::Operator(_)));
        assert_eq!(operators.count(), 15);
    }
}
