//! The tags that Envoy gives spans, in its order.

use std::sync::Arc;

use super::span::{LocalService, Span};
use crate::model::access_log::Template;
use crate::model::http::{CustomTag, CustomTagValue};

/// What is known of a request when its span begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestFacts<'a> {
    /// `x-request-id`.
    pub request_id: Option<&'a str>,
    /// `x-client-trace-id`.
    pub client_trace_id: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The host, with its port if it has one.
    pub authority: &'a str,
    /// As the client asked for it, with its query; before any rewrite.
    pub path: &'a str,
    /// The method.
    pub method: &'a str,
    /// `x-envoy-downstream-service-cluster`.
    pub downstream_cluster: Option<&'a str>,
    /// `user-agent`.
    pub user_agent: Option<&'a str>,
    /// Such as `HTTP/1.1`.
    pub protocol: &'a str,
    /// The IP address of the connection's other end, without port.
    pub peer: &'a str,
    /// Of a gRPC call.
    pub grpc: Option<Grpc<'a>>,
}

/// What is known of a gRPC call when its span begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc<'a> {
    /// `content-type`.
    pub content_type: &'a str,
    /// `grpc-timeout`.
    pub timeout: Option<&'a str>,
}

/// What is known at the end of a request, or of one try.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseFacts<'a> {
    /// The cluster that was asked, by its name in statistics; none without a route.
    pub cluster: Option<&'a str>,
    /// The status code; none where there was no response.
    pub status: Option<u16>,
    /// The response flags as an access log writes them; `-` for none.
    pub flags: &'a str,
    /// `grpc-status`.
    pub grpc_status: Option<u32>,
    /// `grpc-message`.
    pub grpc_message: Option<&'a str>,
}

/// What is known at the end of one try.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpstreamFacts<'a> {
    /// Such as `HTTP/1.1`; `-` where it came to none.
    pub protocol: &'a str,
    /// The endpoint's address, with its port.
    pub address: Option<&'a str>,
    /// Which retry it was: 1 for the first.
    pub retry: Option<u32>,
    /// Whether it was given up.
    pub canceled: bool,
    /// Why the stream was reset, if it was: Envoy's words.
    pub reset: Option<&'a str>,
}

/// The configured tags of a connection manager, the environment's values in them.
#[derive(Clone, Debug, Default)]
pub struct CustomTags(Vec<(Arc<str>, Source)>);

#[derive(Clone, Debug)]
enum Source {
    Literal(Arc<str>),
    Header { name: Arc<str>, default: Arc<str> },
    Format(Template),
}

impl CustomTags {
    /// Reads the environment, once. A format that cannot be parsed is left out: it is refused where the
    /// configuration is decoded.
    pub fn new(tags: &[CustomTag], environment: impl Fn(&str) -> Option<String>) -> Self {
        let source = |value: &CustomTagValue| match value {
            CustomTagValue::Literal(text) => Some(Source::Literal(Arc::clone(text))),
            CustomTagValue::Environment { name, default } => {
                let value = environment(name).map_or_else(|| Arc::clone(default), Arc::from);
                Some(Source::Literal(value))
            }
            CustomTagValue::RequestHeader { name, default } => Some(Source::Header {
                name: Arc::clone(name),
                default: Arc::clone(default),
            }),
            CustomTagValue::Format(text) => Template::parse(text).ok().map(Source::Format),
        };
        let tags = tags.iter();
        Self(
            tags.filter_map(|tag| Some((Arc::clone(&tag.tag), source(&tag.value)?)))
                .collect(),
        )
    }

    /// Sets them: `header` looks up a request's header, `render` fills in a format. Empty ones are left out.
    pub fn apply<'h>(
        &self,
        span: &mut Span,
        header: impl Fn(&str) -> Option<&'h str>,
        render: impl Fn(&Template) -> String,
    ) {
        for (tag, source) in &self.0 {
            let value = match source {
                Source::Literal(text) => text.to_string(),
                Source::Header { name, default } => header(name).unwrap_or(default).to_owned(),
                Source::Format(template) => render(template),
            };
            if !value.is_empty() {
                span.tag(tag.to_string(), value);
            }
        }
    }
}

impl RequestFacts<'_> {
    /// Sets the tags of a request's span; `max_path` is [`crate::model::http::Tracing::max_path_tag_length`].
    pub fn tag(&self, span: &mut Span, local: &LocalService, max_path: u32) {
        span.tag("node_id", local.node_id.as_str());
        span.tag("zone", local.zone.as_str());
        if let Some(request_id) = self.request_id {
            span.tag("guid:x-request-id", request_id);
        }
        let path = cut(self.path, usize::try_from(max_path).unwrap_or(usize::MAX));
        span.tag("http.url", format!("{}://{}{path}", self.scheme, self.authority));
        span.tag("http.method", self.method);
        span.tag("downstream_cluster", or_dash(self.downstream_cluster));
        span.tag("user_agent", or_dash(self.user_agent));
        span.tag("http.protocol", self.protocol);
        span.tag("peer.address", self.peer);
        if let Some(id) = self.client_trace_id {
            span.tag("guid:x-client-trace-id", id);
        }
        if let Some(grpc) = &self.grpc {
            span.tag("grpc.path", self.path);
            span.tag("grpc.authority", self.authority);
            span.tag("grpc.content_type", grpc.content_type);
            if let Some(timeout) = grpc.timeout {
                span.tag("grpc.timeout", timeout);
            }
        }
    }
}

impl ResponseFacts<'_> {
    /// Sets the tags of a request's span at its end, before the configured ones: `received` and `sent` are
    /// the bytes of the bodies.
    pub fn tag_downstream(&self, span: &mut Span, received: u64, sent: u64) {
        span.tag("request_size", received.to_string());
        span.tag("response_size", sent.to_string());
        self.tag(span);
    }

    /// Sets the tags of one try's span at its end, before the configured ones.
    pub fn tag_upstream(&self, span: &mut Span, upstream: &UpstreamFacts<'_>) {
        span.tag("http.protocol", upstream.protocol);
        if let Some(address) = upstream.address {
            span.tag("upstream_address", address);
            span.tag("peer.address", address);
        }
        if let Some(retry) = upstream.retry {
            span.tag("retry.count", retry.to_string());
        }
        if upstream.canceled {
            span.tag("canceled", "true");
        }
        if let Some(reset) = upstream.reset {
            span.tag("error.reason", reset);
        }
        self.tag(span);
    }

    fn tag(&self, span: &mut Span) {
        span.tag("component", "proxy");
        if let Some(cluster) = self.cluster {
            span.tag("upstream_cluster", cluster);
            span.tag("upstream_cluster.name", cluster);
        }
        span.tag("http.status_code", self.status.unwrap_or(0).to_string());
        span.tag("response_flags", self.flags);
        if let Some(status) = self.grpc_status {
            span.tag("grpc.status_code", status.to_string());
        }
        if let Some(message) = self.grpc_message {
            span.tag("grpc.message", message);
        }
        let failed = self.status.is_none_or(|code| (500..600).contains(&code));
        if failed || self.grpc_status.is_some_and(is_server_error) {
            span.tag("error", "true");
        }
        span.status = self.status;
        span.grpc_status = self.grpc_status;
    }
}

/// Whether a gRPC status tells of a failure of the upstream: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED,
/// INTERNAL, UNAVAILABLE, DATA_LOSS.
pub(super) fn is_server_error(grpc_status: u32) -> bool {
    matches!(grpc_status, 2 | 4 | 12..=15)
}

fn or_dash(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("-")
}

/// At most `length` bytes of a text, cut between characters.
fn cut(text: &str, length: usize) -> &str {
    let mut end = length.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::testing;
    use super::*;

    const REQUEST: RequestFacts<'static> = RequestFacts {
        request_id: Some("d1a32dbf-49ca-98d7-916f-d6e98bbfab06"),
        client_trace_id: None,
        scheme: "http",
        authority: "127.0.0.1:24112",
        path: "/pkg.Dead/M",
        method: "POST",
        downstream_cluster: None,
        user_agent: Some("curl/7.88.1"),
        protocol: "HTTP/2",
        peer: "127.0.0.1",
        grpc: Some(Grpc {
            content_type: "application/grpc",
            timeout: None,
        }),
    };

    fn shown(span: &Span) -> Vec<String> {
        span.tags
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// What a real Envoy wrote for the same request, all of it.
    #[test]
    fn a_requests_tags_are_envoys() {
        let mut span = testing::span(SystemTime::UNIX_EPOCH);
        let local = LocalService {
            node_id: "lab".to_owned(),
            ..LocalService::default()
        };
        REQUEST.tag(&mut span, &local, 256);
        let response = ResponseFacts {
            cluster: Some("dead"),
            status: Some(200),
            flags: "UF",
            grpc_status: Some(14),
            grpc_message: Some("upstream connect error"),
        };
        response.tag_downstream(&mut span, 6, 0);
        let tags = [
            CustomTag {
                tag: "lit".into(),
                value: CustomTagValue::Literal("v".into()),
            },
            CustomTag {
                tag: "hd".into(),
                value: CustomTagValue::RequestHeader {
                    name: "x-tag".into(),
                    default: "none".into(),
                },
            },
            CustomTag {
                tag: "env".into(),
                value: CustomTagValue::Environment {
                    name: "HOST".into(),
                    default: "".into(),
                },
            },
            CustomTag {
                tag: "fmt".into(),
                value: CustomTagValue::Format("%PROTOCOL%".into()),
            },
            CustomTag {
                tag: "empty".into(),
                value: CustomTagValue::Literal("".into()),
            },
        ];
        let custom = CustomTags::new(&tags, |name| Some(format!("of {name}")));
        custom.apply(&mut span, |_| None, |_| "rendered".to_owned());
        assert_eq!(
            shown(&span),
            [
                "node_id=lab",
                "zone=",
                "guid:x-request-id=d1a32dbf-49ca-98d7-916f-d6e98bbfab06",
                "http.url=http://127.0.0.1:24112/pkg.Dead/M",
                "http.method=POST",
                "downstream_cluster=-",
                "user_agent=curl/7.88.1",
                "http.protocol=HTTP/2",
                "peer.address=127.0.0.1",
                "grpc.path=/pkg.Dead/M",
                "grpc.authority=127.0.0.1:24112",
                "grpc.content_type=application/grpc",
                "request_size=6",
                "response_size=0",
                "component=proxy",
                "upstream_cluster=dead",
                "upstream_cluster.name=dead",
                "http.status_code=200",
                "response_flags=UF",
                "grpc.status_code=14",
                "grpc.message=upstream connect error",
                "error=true",
                "lit=v",
                "hd=none",
                "env=of HOST",
                "fmt=rendered",
            ]
        );
    }

    #[test]
    fn a_trys_tags_are_envoys() {
        let mut span = testing::span(SystemTime::UNIX_EPOCH);
        let response = ResponseFacts {
            cluster: Some("app"),
            flags: "UF",
            ..ResponseFacts::default()
        };
        let upstream = UpstreamFacts {
            protocol: "-",
            address: Some("127.0.0.1:1"),
            retry: Some(1),
            canceled: true,
            reset: Some("remote connection failure"),
        };
        response.tag_upstream(&mut span, &upstream);
        assert_eq!(
            shown(&span),
            [
                "http.protocol=-",
                "upstream_address=127.0.0.1:1",
                "peer.address=127.0.0.1:1",
                "retry.count=1",
                "canceled=true",
                "error.reason=remote connection failure",
                "component=proxy",
                "upstream_cluster=app",
                "upstream_cluster.name=app",
                "http.status_code=0",
                "response_flags=UF",
                "error=true",
            ]
        );
    }

    #[test]
    fn which_responses_are_errors() {
        for (status, grpc, error) in [
            (Some(200), None, false),
            (Some(404), None, false),
            (Some(503), None, true),
            (None, None, true),
            (Some(200), Some(0), false),
            (Some(200), Some(7), false),
            (Some(200), Some(2), true),
            (Some(200), Some(12), true),
            (Some(200), Some(15), true),
            (Some(200), Some(16), false),
        ] {
            let mut span = testing::span(SystemTime::UNIX_EPOCH);
            let response = ResponseFacts {
                status,
                grpc_status: grpc,
                ..ResponseFacts::default()
            };
            response.tag_downstream(&mut span, 0, 0);
            let tagged = span.tags.iter().any(|(name, _)| name == "error");
            assert_eq!(tagged, error, "{status:?} {grpc:?}");
        }
    }

    #[test]
    fn long_paths_are_cut_between_characters() {
        assert_eq!(cut("/abc", 3), "/ab");
        assert_eq!(cut("/é", 2), "/");
        assert_eq!(cut("/é", 9), "/é");
        assert_eq!(cut("", 0), "");
    }
}
