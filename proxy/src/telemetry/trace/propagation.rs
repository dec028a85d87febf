//! Trace contexts in headers: B3 in one header or in several, and W3C's `traceparent`.
//!
//! Reads what comes. What goes out is [`super::TraceContext`]'s.

use crate::model::http::TracingProvider;

/// What the headers of a request say of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extracted {
    /// Nothing; perhaps whether it is to be traced.
    None {
        /// `b3: 0` and its like.
        sampled: Option<bool>,
        /// By B3 in one header, in which it goes on then.
        single: bool,
    },
    /// The span that the request is of.
    Parent(Parent),
    /// Something that cannot be read: Envoy makes no span then, and leaves the headers.
    Invalid,
}

/// The span that a request says it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Of 64 bits where its upper half is 0.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
    /// The span's own parent.
    pub parent_id: Option<u64>,
    /// Whether it is traced, where that is said.
    pub sampled: Option<bool>,
    /// `tracestate`, with W3C's header.
    pub tracestate: String,
    /// It came by B3 in one header.
    pub single: bool,
}

/// Reads the headers that `provider` understands. `header` looks one up by its lower-case name.
pub fn extract<'h>(provider: &TracingProvider, header: impl Fn(&str) -> Option<&'h str>) -> Extracted {
    match provider {
        TracingProvider::OpenTelemetry(_) => w3c(&header).unwrap_or(Extracted::None {
            sampled: None,
            single: false,
        }),
        TracingProvider::Zipkin(zipkin) => match b3(&header) {
            Extracted::None { sampled: None, .. } if zipkin.w3c_propagation => w3c(&header)
                // Envoy goes on without a context that B3 has not, and that W3C's header has not either.
                .filter(|found| *found != Extracted::Invalid)
                .unwrap_or(Extracted::None {
                    sampled: None,
                    single: false,
                }),
            found => found,
        },
    }
}

/// `count` hexadecimal digits.
fn hex(text: &str, count: usize) -> Option<u128> {
    let digits = text.len() == count && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Half as long an ID.
fn hex64(text: &str) -> Option<u64> {
    u64::try_from(hex(text, 16)?).ok()
}

/// A trace ID of 64 or 128 bits.
fn trace_id(text: &str) -> Option<u128> {
    hex(text, if text.len() == 32 { 32 } else { 16 })
}

/// Up to 16 digits, as `x-b3-…` may have.
fn short(text: &str) -> Option<u64> {
    (1..=16)
        .contains(&text.len())
        .then(|| u64::try_from(hex(text, text.len())?).ok())
        .flatten()
}

/// `traceparent`: `<version>-<trace ID>-<span ID>-<flags>`; none where there is no such header. Like Envoy it
/// heeds no version, and takes nothing longer from newer ones.
fn w3c<'h>(header: &impl Fn(&str) -> Option<&'h str>) -> Option<Extracted> {
    let text = header("traceparent")?;
    let read = || {
        let mut parts = text.split('-');
        let _version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32).filter(|id| *id != 0)?;
        let span_id = hex64(parts.next()?).filter(|id| *id != 0)?;
        let flags = hex(parts.next()?, 2)?;
        parts.next().is_none().then(|| Parent {
            trace_id,
            span_id,
            parent_id: None,
            sampled: Some(flags & 1 == 1),
            tracestate: header("tracestate").unwrap_or_default().to_owned(),
            single: false,
        })
    };
    Some(read().map_or(Extracted::Invalid, Extracted::Parent))
}

/// B3: `b3`, else `x-b3-…`.
fn b3<'h>(header: &impl Fn(&str) -> Option<&'h str>) -> Extracted {
    if let Some(text) = header("b3") {
        return b3_single(text).unwrap_or(Extracted::Invalid);
    }
    let sampled = header("x-b3-sampled").map(|flag| matches!(flag, "1" | "true"));
    let (Some(trace), Some(span)) = (header("x-b3-traceid"), header("x-b3-spanid")) else {
        return Extracted::None {
            sampled,
            single: false,
        };
    };
    let parent = header("x-b3-parentspanid").filter(|parent| !parent.is_empty());
    let wide = if trace.len() == 32 {
        hex(trace, 32)
    } else {
        short(trace).map(u128::from)
    };
    let ids = (wide, short(span), parent.map(short));
    let (Some(trace_id), Some(span_id), None | Some(Some(_))) = ids else {
        return Extracted::Invalid;
    };
    Extracted::Parent(Parent {
        trace_id,
        span_id,
        parent_id: ids.2.flatten(),
        sampled,
        tracestate: String::new(),
        single: false,
    })
}

/// `<trace ID>-<span ID>[-<sampled>][-<parent>]`, or `<sampled>` alone.
fn b3_single(text: &str) -> Option<Extracted> {
    let flag = |text: &str| match text {
        "0" => Some(false),
        "1" | "d" => Some(true),
        _ => None,
    };
    if let Some(sampled) = flag(text) {
        return Some(Extracted::None {
            sampled: Some(sampled),
            single: true,
        });
    }
    let mut parts = text.split('-');
    let mut parent = Parent {
        trace_id: trace_id(parts.next()?)?,
        span_id: hex64(parts.next()?)?,
        parent_id: None,
        sampled: None,
        tracestate: String::new(),
        single: true,
    };
    if let Some(sampled) = parts.next() {
        parent.sampled = Some(flag(sampled)?);
    }
    if let Some(id) = parts.next() {
        parent.parent_id = Some(hex64(id)?);
    }
    parts.next().is_none().then_some(Extracted::Parent(parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::testing::{TRACE, open_telemetry, zipkin};

    const SPAN: u64 = 0xe457_b5a2_e4d8_6bd1;

    fn read(provider: &TracingProvider, headers: &[(&str, &str)]) -> Extracted {
        extract(provider, |name| {
            let found = headers.iter().find(|(known, _)| *known == name)?;
            Some(found.1)
        })
    }

    fn parent(
        trace_id: u128,
        span_id: u64,
        parent_id: Option<u64>,
        sampled: Option<bool>,
        single: bool,
    ) -> Extracted {
        Extracted::Parent(Parent {
            trace_id,
            span_id,
            parent_id,
            sampled,
            tracestate: String::new(),
            single,
        })
    }

    const NOTHING: Extracted = Extracted::None {
        sampled: None,
        single: false,
    };

    /// Each as a real Envoy was seen to take it.
    #[test]
    fn b3_as_envoy_reads_it() {
        const T: &str = "80f198ee56343ba864fe8b2a57d3eff7";
        const S: &str = "e457b5a2e4d86bd1";
        const P: &str = "05e3ac9a4f6e3b90";
        let p = Some(0x05e3_ac9a_4f6e_3b90);
        let several = |sampled: &'static str, parent_id: Option<&'static str>| {
            let mut headers = vec![("x-b3-traceid", T), ("x-b3-spanid", S)];
            headers.extend(parent_id.map(|id| ("x-b3-parentspanid", id)));
            headers.extend(Some(("x-b3-sampled", sampled)).filter(|(_, value)| !value.is_empty()));
            read(&zipkin(false), &headers)
        };
        assert_eq!(several("1", Some(P)), parent(TRACE, SPAN, p, Some(true), false));
        assert_eq!(
            several("true", None),
            parent(TRACE, SPAN, None, Some(true), false)
        );
        assert_eq!(several("0", None), parent(TRACE, SPAN, None, Some(false), false));
        assert_eq!(several("", None), parent(TRACE, SPAN, None, None, false));
        assert_eq!(several("1", Some("zz")), Extracted::Invalid);
        let ids = |trace, span| read(&zipkin(false), &[("x-b3-traceid", trace), ("x-b3-spanid", span)]);
        assert_eq!(ids(S, S), parent(u128::from(SPAN), SPAN, None, None, false));
        assert_eq!(ids("abc", "1"), parent(0xabc, 1, None, None, false));
        for (trace, span) in [("zz", S), (T, "zz"), ("", S), (&T[..20], S), (T, T), ("+1", S)] {
            assert_eq!(ids(trace, span), Extracted::Invalid, "{trace} {span}");
        }
        assert_eq!(read(&zipkin(false), &[("x-b3-traceid", T)]), NOTHING);
        assert_eq!(read(&zipkin(false), &[("x-b3-flags", "1")]), NOTHING);
        assert_eq!(
            read(&zipkin(false), &[("x-b3-sampled", "0")]),
            Extracted::None {
                sampled: Some(false),
                single: false
            }
        );
        let single = |text: &str| read(&zipkin(false), &[("b3", text)]);
        assert_eq!(
            single(&format!("{T}-{S}-1-{P}")),
            parent(TRACE, SPAN, p, Some(true), true)
        );
        assert_eq!(
            single(&format!("{T}-{S}-d")),
            parent(TRACE, SPAN, None, Some(true), true)
        );
        assert_eq!(single(&format!("{T}-{S}")), parent(TRACE, SPAN, None, None, true));
        assert_eq!(
            single("0"),
            Extracted::None {
                sampled: Some(false),
                single: true
            }
        );
        for text in [
            "xyz",
            "",
            "-",
            &format!("{T}-{S}-x"),
            &format!("{T}-{S}-{P}"),
            &format!("{T}-{S}-1-{P}-1"),
            T,
        ] {
            assert_eq!(single(text), Extracted::Invalid, "{text}");
        }
    }

    /// Each as a real Envoy was seen to take it.
    #[test]
    fn w3c_as_envoy_reads_it() {
        const T: &str = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1";
        let w3c = |text: &str| read(&open_telemetry(), &[("traceparent", text), ("b3", "0")]);
        assert_eq!(
            w3c(&format!("00-{T}-01")),
            parent(TRACE, SPAN, None, Some(true), false)
        );
        assert_eq!(
            w3c(&format!("00-{T}-00")),
            parent(TRACE, SPAN, None, Some(false), false)
        );
        assert_eq!(
            w3c(&format!("ff-{T}-01")),
            parent(TRACE, SPAN, None, Some(true), false)
        );
        assert_eq!(
            w3c(&format!("00-{}-01", T.to_uppercase())),
            parent(TRACE, SPAN, None, Some(true), false)
        );
        let zero = format!("00-{}-e457b5a2e4d86bd1-01", "0".repeat(32));
        for text in [
            &format!("00-{T}"),
            &format!("01-{T}-01-xx"),
            &zero,
            "",
            "é",
            &format!("00-{T}-1"),
        ] {
            assert_eq!(w3c(text), Extracted::Invalid, "{text}");
            // Beside B3 such a header is as good as none.
            assert_eq!(read(&zipkin(true), &[("traceparent", text)]), NOTHING, "{text}");
        }
        let good = format!("00-{T}-01");
        assert_eq!(read(&open_telemetry(), &[("b3", "0")]), NOTHING);
        assert_eq!(read(&zipkin(false), &[("traceparent", &good)]), NOTHING);
        assert_eq!(
            read(&zipkin(true), &[("traceparent", &good)]),
            parent(TRACE, SPAN, None, Some(true), false)
        );
        assert_eq!(
            read(&zipkin(true), &[("traceparent", &good), ("b3", "0")]),
            Extracted::None {
                sampled: Some(false),
                single: true
            }
        );
        let state = read(
            &open_telemetry(),
            &[("traceparent", &good), ("tracestate", "a=b")],
        );
        assert!(matches!(state, Extracted::Parent(Parent { tracestate, .. }) if tracestate == "a=b"));
    }
}
