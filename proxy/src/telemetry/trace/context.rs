//! The place of a span in its trace, and the headers that tell the upstream of it.

use super::propagation::{Extracted, Parent};
use super::span::SpanKind;
use crate::model::http::TracingProvider;

/// Envoy's operation of a connection manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Requests to the local app: every listener that is not `OUTBOUND`.
    #[default]
    Ingress,
    /// Requests of the local app: the listener's `traffic_direction` is `OUTBOUND`.
    Egress,
}

/// In which headers a context goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `b3` or `x-b3-…`, and `traceparent` if it is to be there too.
    B3 {
        /// In one header, because it came so.
        single: bool,
        /// And in W3C's.
        w3c: bool,
    },
    /// `traceparent` and `tracestate`.
    W3c,
}

/// The place of a span in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Of 64 bits where its upper half is 0.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
    /// The span that it is part of.
    pub parent_id: Option<u64>,
    /// Whether it is reported. It is told to the upstream either way.
    pub sampled: bool,
    /// Which side of a call it tells of.
    pub kind: SpanKind,
    /// Whether the caller's span has the same ID: Zipkin's `shared`.
    pub shared: bool,
    /// Whether the parent is another process's.
    pub remote_parent: bool,
    /// `tracestate`, as it came.
    pub tracestate: String,
    format: Format,
}

impl TraceContext {
    /// The context of a request's span; `traced` is the connection manager's decision, `spawns` its
    /// `spawn_upstream_span`. `None` where what came cannot be read.
    pub(super) fn begin(
        provider: &TracingProvider,
        direction: Direction,
        traced: bool,
        spawns: bool,
        extracted: Extracted,
    ) -> Option<Self> {
        let found = match extracted {
            Extracted::Invalid => return None,
            Extracted::None { sampled, single } => Err((sampled, single)),
            Extracted::Parent(parent) => Ok(parent),
        };
        Some(match provider {
            TracingProvider::OpenTelemetry(_) => {
                let server = direction == Direction::Ingress || spawns;
                Self::open_telemetry(server, traced, found.ok())
            }
            TracingProvider::Zipkin(zipkin) => {
                let server = direction == Direction::Ingress || zipkin.split_spans_for_request || spawns;
                let kind = if server {
                    SpanKind::Server
                } else {
                    SpanKind::Client
                };
                let shares = server && zipkin.shared_span_context;
                match found {
                    Err((sampled, single)) => Self {
                        kind,
                        shared: shares,
                        format: Format::B3 {
                            single,
                            w3c: zipkin.w3c_propagation,
                        },
                        ..Self::root(zipkin.trace_id_128bit, sampled.unwrap_or(traced))
                    },
                    Ok(parent) => Self::zipkin_child(&parent, kind, shares, traced, zipkin.w3c_propagation),
                }
            }
        })
    }

    /// The first span of a trace. As in Envoy, its ID is the lower half of the trace's.
    fn root(wide: bool, sampled: bool) -> Self {
        let span_id = random();
        let upper = if wide { u128::from(random()) << 64 } else { 0 };
        Self {
            trace_id: upper | u128::from(span_id),
            span_id,
            parent_id: None,
            sampled,
            kind: SpanKind::Server,
            shared: false,
            remote_parent: false,
            tracestate: String::new(),
            format: Format::W3c,
        }
    }

    fn zipkin_child(parent: &Parent, kind: SpanKind, shares: bool, traced: bool, w3c: bool) -> Self {
        Self {
            trace_id: parent.trace_id,
            span_id: if shares { parent.span_id } else { random() },
            parent_id: if shares {
                parent.parent_id
            } else {
                Some(parent.span_id)
            },
            sampled: parent.sampled.unwrap_or(traced),
            kind,
            shared: shares,
            remote_parent: true,
            tracestate: String::new(),
            format: Format::B3 {
                single: parent.single,
                w3c,
            },
        }
    }

    fn open_telemetry(server: bool, traced: bool, parent: Option<Parent>) -> Self {
        let kind = if server {
            SpanKind::Server
        } else {
            SpanKind::Client
        };
        let root = Self {
            span_id: random(),
            kind,
            ..Self::root(true, traced)
        };
        match parent {
            None => root,
            Some(parent) => Self {
                trace_id: parent.trace_id,
                parent_id: Some(parent.span_id),
                sampled: traced && parent.sampled != Some(false),
                remote_parent: true,
                tracestate: parent.tracestate,
                ..root
            },
        }
    }

    /// The context of a span within this one: a request to a cluster, one for each try.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            span_id: random(),
            parent_id: Some(self.span_id),
            kind: SpanKind::Client,
            shared: false,
            remote_parent: false,
            ..self.clone()
        }
    }

    /// The trace's ID and the span's, as access logs write them.
    pub fn ids(&self) -> (String, String) {
        let trace_id = match self.format {
            Format::W3c => format!("{:032x}", self.trace_id),
            Format::B3 { .. } => hex_trace_id(self.trace_id),
        };
        (trace_id, format!("{:016x}", self.span_id))
    }

    /// The headers that tell the upstream, to be set in place of what came; not where the connection manager
    /// has `no_context_propagation`.
    pub fn inject(&self) -> Vec<(&'static str, String)> {
        let sampled = u8::from(self.sampled);
        let trace_id = hex_trace_id(self.trace_id);
        let traceparent = format!("00-{:032x}-{:016x}-{sampled:02x}", self.trace_id, self.span_id);
        match self.format {
            Format::W3c => vec![
                ("traceparent", traceparent),
                ("tracestate", self.tracestate.clone()),
            ],
            Format::B3 { single, w3c } => {
                let mut headers = Vec::with_capacity(5);
                if single {
                    let mut text = format!("{trace_id}-{:016x}-{sampled}", self.span_id);
                    if let Some(parent) = self.parent_id {
                        text = format!("{text}-{parent:016x}");
                    }
                    headers.push(("b3", text));
                } else {
                    headers.push(("x-b3-traceid", trace_id));
                    headers.push(("x-b3-spanid", format!("{:016x}", self.span_id)));
                    if let Some(parent) = self.parent_id {
                        headers.push(("x-b3-parentspanid", format!("{parent:016x}")));
                    }
                    headers.push(("x-b3-sampled", sampled.to_string()));
                }
                if w3c {
                    headers.push(("traceparent", traceparent));
                }
                headers
            }
        }
    }
}

/// Zipkin's writing of a trace ID.
pub(super) fn hex_trace_id(trace_id: u128) -> String {
    if trace_id >> 64 == 0 {
        format!("{trace_id:016x}")
    } else {
        format!("{trace_id:032x}")
    }
}

/// An ID; 0 is none.
fn random() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::http::Zipkin;
    use crate::telemetry::trace::testing::{TRACE, open_telemetry, zipkin, zipkin_with};

    const SPAN: u64 = 0xe457_b5a2_e4d8_6bd1;
    const UPPER: u64 = 0x05e3_ac9a_4f6e_3b90;

    fn parent(sampled: Option<bool>, single: bool) -> Extracted {
        Extracted::Parent(Parent {
            trace_id: TRACE,
            span_id: SPAN,
            parent_id: Some(UPPER),
            sampled,
            tracestate: "a=b".to_owned(),
            single,
        })
    }

    fn headers(context: &TraceContext) -> String {
        let headers = context.inject();
        let lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        lines.join("; ")
    }

    fn begin(
        provider: &TracingProvider,
        direction: Direction,
        traced: bool,
        extracted: Extracted,
    ) -> TraceContext {
        TraceContext::begin(provider, direction, traced, false, extracted).unwrap()
    }

    #[test]
    fn a_server_shares_the_callers_span() {
        let context = begin(
            &zipkin(false),
            Direction::Ingress,
            false,
            parent(Some(true), false),
        );
        assert!(context.shared && context.kind == SpanKind::Server);
        assert_eq!(
            headers(&context),
            "x-b3-traceid: 80f198ee56343ba864fe8b2a57d3eff7; x-b3-spanid: e457b5a2e4d86bd1; \
             x-b3-parentspanid: 05e3ac9a4f6e3b90; x-b3-sampled: 1"
        );
        let context = begin(
            &zipkin(false),
            Direction::Ingress,
            true,
            parent(Some(false), true),
        );
        assert_eq!(
            headers(&context),
            "b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0-05e3ac9a4f6e3b90"
        );
        // What does not say whether, the connection manager decides.
        for traced in [false, true] {
            let context = begin(&zipkin(false), Direction::Ingress, traced, parent(None, false));
            assert_eq!(context.sampled, traced);
        }
    }

    #[test]
    fn a_client_is_a_child_of_its_own() {
        let context = begin(&zipkin(true), Direction::Egress, true, parent(Some(true), false));
        assert!(!context.shared && context.kind == SpanKind::Client);
        assert_ne!(context.span_id, SPAN);
        let span = format!("{:016x}", context.span_id);
        assert_eq!(
            headers(&context),
            format!(
                "x-b3-traceid: 80f198ee56343ba864fe8b2a57d3eff7; x-b3-spanid: {span}; \
                 x-b3-parentspanid: e457b5a2e4d86bd1; x-b3-sampled: 1; \
                 traceparent: 00-80f198ee56343ba864fe8b2a57d3eff7-{span}-01"
            )
        );
        // As Envoy does where it makes spans for upstreams, or splits them.
        let spawned =
            TraceContext::begin(&zipkin(false), Direction::Egress, true, true, parent(None, false)).unwrap();
        assert_eq!(
            (spawned.kind, spawned.shared, spawned.span_id),
            (SpanKind::Server, true, SPAN)
        );
        let split = zipkin_with(|zipkin: &mut Zipkin| {
            zipkin.split_spans_for_request = true;
            zipkin.shared_span_context = false;
        });
        let context = begin(&split, Direction::Egress, true, parent(None, false));
        assert_eq!(
            (context.kind, context.shared, context.parent_id),
            (SpanKind::Server, false, Some(SPAN))
        );
    }

    #[test]
    fn a_trace_begins_with_one_id() {
        let nothing = || Extracted::None {
            sampled: None,
            single: false,
        };
        let context = begin(&zipkin(false), Direction::Ingress, true, nothing());
        assert_eq!(context.trace_id, u128::from(context.span_id));
        let id = format!("{:016x}", context.span_id);
        assert_eq!(
            headers(&context),
            format!("x-b3-traceid: {id}; x-b3-spanid: {id}; x-b3-sampled: 1")
        );
        let wide = zipkin_with(|zipkin: &mut Zipkin| zipkin.trace_id_128bit = true);
        let context = begin(&wide, Direction::Ingress, true, nothing());
        assert_ne!(context.trace_id >> 64, 0);
        assert_eq!(
            u64::try_from(context.trace_id & u128::from(u64::MAX)),
            Ok(context.span_id)
        );
        let refused = Extracted::None {
            sampled: Some(false),
            single: true,
        };
        let context = begin(&zipkin(false), Direction::Ingress, true, refused);
        let id = format!("{:016x}", context.span_id);
        assert_eq!(headers(&context), format!("b3: {id}-{id}-0"));
        assert!(!context.child().sampled);
    }

    #[test]
    fn open_telemetry_is_traced_if_both_say_so() {
        let of = |traced, sampled| {
            begin(
                &open_telemetry(),
                Direction::Ingress,
                traced,
                parent(sampled, false),
            )
        };
        for (traced, sampled, wanted) in [
            (true, Some(true), true),
            (true, Some(false), false),
            (false, Some(true), false),
            (false, Some(false), false),
        ] {
            let context = of(traced, sampled);
            assert_eq!(context.sampled, wanted);
            assert_eq!((context.trace_id, context.parent_id), (TRACE, Some(SPAN)));
            let flags = if wanted { "01" } else { "00" };
            assert_eq!(
                headers(&context),
                format!(
                    "traceparent: 00-80f198ee56343ba864fe8b2a57d3eff7-{:016x}-{flags}; tracestate: a=b",
                    context.span_id
                )
            );
        }
        let root = begin(
            &open_telemetry(),
            Direction::Egress,
            true,
            Extracted::None {
                sampled: None,
                single: false,
            },
        );
        assert_eq!(
            (root.kind, root.parent_id, root.remote_parent),
            (SpanKind::Client, None, false)
        );
        let child = root.child();
        assert_eq!(
            (child.trace_id, child.parent_id),
            (root.trace_id, Some(root.span_id))
        );
        assert_ne!(child.span_id, root.span_id);
    }

    #[test]
    fn what_cannot_be_read_makes_no_span() {
        let none = TraceContext::begin(
            &open_telemetry(),
            Direction::Ingress,
            true,
            false,
            Extracted::Invalid,
        );
        assert_eq!(none, None);
    }
}
