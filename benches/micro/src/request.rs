//! One request and its answer, all the way through the connection manager of a public listener as Consul sets it:
//! heads in and out, intentions, headers of forwarding and of the caller's certificate, route, endpoint, pool.
//!
//! Between a downstream in memory and an app on the loopback, both in the same thread and as little as they can
//! be; what they cost counts, too.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use attache::http::{Accepted, Certificates, Connection, HttpWorker, serve};
use attache::limit::Limits;
use attache::model::cluster::HttpProtocol;
use attache::model::http::{
    ForwardClientCert, ForwardClientCertMode, HeaderToMetadata, HeaderToMetadataRule, Http2Options,
    HttpFilter, MetadataEntry, MetadataKind, MetadataSource, MetadataValue, Routes, Sampling,
    SetCurrentClientCert, Tracing,
};
use attache::model::listener::Address;
use attache::model::rewrite::RegexRewrite;
use attache::model::{Cluster, HttpConnectionManager, Snapshot};
use attache::telemetry::ConnectionLog;
use attache::telemetry::metrics::ListenerMetrics;
use attache::telemetry::trace::Direction;
use attache::tls::ConfigCache;
use attache::upstream::ClusterManager;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::bench::{Bench, Outcome, WARM_UP, counted};
use crate::pipe::{Downstreams, pipe};
use crate::records::{identity, runtime};
use crate::{balancer, frames, rbac, route};

const BODY: &[u8] = b"{\"id\":42,\"name\":\"a thing of which there are some\",\"price\":1999,\"currency\":\"EUR\",\"in_stock\":true}\n";

const TARGET: &str = "/api/service-8/items/42?page=7";

/// Headers that both versions of HTTP bring, beside the host.
const REQUEST: [(&str, &str); 7] = [
    ("user-agent", "okhttp/4.12.0"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip"),
    ("accept-language", "en"),
    ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
    ("x-request-id", "0f6f6f0e-6d35-4d3e-9d5f-2f8d8f1d0c11"),
    ("cache-control", "no-cache"),
];

const RESPONSE: [(&str, &str); 5] = [
    ("content-type", "application/json"),
    ("cache-control", "private, max-age=0"),
    ("etag", "\"5f3c-18c2d4a7\""),
    ("vary", "accept-encoding"),
    ("content-length", "97"),
];

/// An exchange takes milliseconds under valgrind; one that is not answered is to end some time.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const BENCHES: &[Bench] = &[
    Bench {
        name: "http1-request",
        times: 200,
        run: |times| requests(times, HttpProtocol::Http1, manager()?),
    },
    Bench {
        name: "http1-request-metadata",
        times: 100,
        run: |times| {
            let mut manager = manager()?;
            let filter = HttpFilter::HeaderToMetadata(Arc::new(caller_to_metadata()?));
            manager.http_filters.push(filter);
            requests(times, HttpProtocol::Http1, manager)
        },
    },
    Bench {
        name: "http2-request",
        times: 200,
        run: |times| requests(times, HttpProtocol::Http2, manager()?),
    },
];

fn requests(times: u32, protocol: HttpProtocol, manager: HttpConnectionManager) -> Outcome {
    let runtime = runtime()?;
    let answered = Rc::<Cell<u32>>::default();
    let downstream = runtime.block_on(start(protocol, manager, &answered))?;
    let mut asked = Asked::new(protocol);
    let exchange = |request: &[u8]| {
        downstream.send(request);
        runtime.block_on(async {
            let received =
                poll_fn(|cx| downstream.poll_received(|received| is_answer(protocol, received), cx));
            timeout(PATIENCE, received).await
        })
    };
    for round in 0..WARM_UP + times {
        let request = asked.next();
        if round < WARM_UP {
            exchange(&request).map_err(|_| "no answer")?;
        } else {
            let mut done = Ok(());
            counted(&mut || done = exchange(&request));
            done.map_err(|_| "no answer")?;
        }
    }
    if answered.get() != WARM_UP + times {
        return Err("the app did not get every request".into());
    }
    Ok(())
}

/// Whether it is a whole one. What was looked at is taken.
fn is_answer(protocol: HttpProtocol, received: &mut Vec<u8>) -> bool {
    match protocol {
        HttpProtocol::Http1 => received.ends_with(BODY),
        HttpProtocol::Http2 | HttpProtocol::Downstream => !frames::take_ended(received).is_empty(),
    }
}

/// The bytes of one request after the other.
enum Asked {
    Http1(Vec<u8>),
    Http2 { stream: u32, messages: frames::Messages },
}

impl Asked {
    fn new(protocol: HttpProtocol) -> Self {
        if protocol == HttpProtocol::Http1 {
            let mut head = format!("GET {TARGET} HTTP/1.1\r\nhost: {}\r\n", route::HOST);
            head.extend(REQUEST.map(|(name, value)| format!("{name}: {value}\r\n")));
            head.push_str("\r\n");
            return Self::Http1(head.into_bytes());
        }
        let mut headers = vec![
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", route::HOST),
            (":path", TARGET),
        ];
        headers.extend(REQUEST);
        Self::Http2 {
            stream: 1,
            messages: frames::Messages::new(&headers, b""),
        }
    }

    fn next(&mut self) -> Vec<u8> {
        match self {
            Self::Http1(head) => head.clone(),
            Self::Http2 { stream, messages } => {
                let mut bytes = match *stream {
                    1 => [frames::PREFACE, &frames::settings()].concat(),
                    // Theirs came before the first answer.
                    3 => frames::settings_taken(),
                    _ => Vec::new(),
                };
                bytes.extend(messages.on(*stream));
                *stream += 2;
                bytes
            }
        }
    }
}

/// The app: answers each request with the same bytes.
async fn app(mut socket: TcpStream, protocol: HttpProtocol, answered: Rc<Cell<u32>>) -> std::io::Result<()> {
    let mut head = "HTTP/1.1 200 OK\r\n".to_owned();
    head.extend(RESPONSE.map(|(name, value)| format!("{name}: {value}\r\n")));
    let http1 = [head.as_bytes(), b"\r\n", BODY].concat();
    let mut messages = frames::Messages::new(&[&[(":status", "200")], &RESPONSE[..]].concat(), BODY);
    let mut input = Vec::with_capacity(16 * 1024);
    loop {
        if socket.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let mut answers = Vec::new();
        if protocol == HttpProtocol::Http1 {
            if !input.ends_with(b"\r\n\r\n") {
                continue;
            }
            input.clear();
            answered.set(answered.get() + 1);
            answers.extend_from_slice(&http1);
        } else {
            if input.starts_with(frames::PREFACE) {
                input.drain(..frames::PREFACE.len());
                answers.extend(frames::settings());
                answers.extend(frames::settings_taken());
            }
            for stream in frames::take_ended(&mut input) {
                answered.set(answered.get() + 1);
                answers.extend(messages.on(stream));
            }
        }
        socket.write_all(&answers).await?;
    }
}

/// Starts the app and the connection manager; gives the downstream's end of its one connection.
async fn start(
    protocol: HttpProtocol,
    manager: HttpConnectionManager,
    answered: &Rc<Cell<u32>>,
) -> Result<Downstreams, Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answered = Rc::clone(answered);
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            // Fails only where the proxy is gone, which is noticed there.
            let _ = socket.set_nodelay(true);
            spawn_local(app(socket, protocol, Rc::clone(&answered)));
        }
    });
    let mut snapshot = Snapshot::default();
    let cluster = Cluster {
        name: "service-8".into(),
        http: protocol,
        ..Cluster::default()
    };
    balancer::add(&mut snapshot, cluster, std::iter::once(Address::Socket(address)));
    let clusters = Rc::new(ClusterManager::new(Limits::default(), true));
    clusters.apply(&snapshot, &mut ConfigCache::default());
    let worker = Rc::new(HttpWorker::new(clusters));
    worker.apply(&snapshot);
    let manager = Arc::new(manager);
    let accepted = Accepted {
        downstream: Rc::new(rbac::downstream("web")?),
        encrypted: true,
        tls: None,
        certificates: Some(Certificates {
            peer: identity("web")?.chain,
            own_uris: vec![rbac::uri("api")],
        }),
        listener: "public_listener".into(),
        listener_address: "10.1.2.4_20000",
        filter_chain: None,
        direction: Direction::Ingress,
        app_refused: Box::new(|| {}),
    };
    let connection = Connection::new(Box::new(move || Arc::clone(&manager)), accepted, worker);
    let (proxys, downstreams) = pipe();
    spawn_local(async move {
        let metrics = Rc::new(ListenerMetrics::new("10.1.2.4:20000"));
        let mut log = ConnectionLog::open("public_listener".into(), "10.1.2.3:40000".to_owned(), metrics);
        serve(Rc::new(connection), Box::new(proxys), pending(), &mut log).await;
    });
    Ok(downstreams)
}

/// As Consul's xDS server writes it, but for the routes, which would be one, and [`caller_to_metadata`].
fn manager() -> Result<HttpConnectionManager, String> {
    let table = Arc::new(route::table()?);
    let mut manager = HttpConnectionManager::new("public_listener".into(), Routes::Inline(table));
    manager.upgrade_types = vec!["websocket".into()];
    manager.http2 = Some(Http2Options::default());
    manager.tracing = Some(Arc::new(Tracing {
        client_sampling: Sampling::ALL,
        random_sampling: Sampling::from_percent(0.0).ok_or("no share")?,
        overall_sampling: Sampling::ALL,
        verbose: false,
        max_path_tag_length: 256,
        custom_tags: Vec::new(),
        provider: None,
        spawn_upstream_span: false,
        no_context_propagation: false,
    }));
    manager.normalization.normalize_path = true;
    manager.forward_client_cert = ForwardClientCert {
        mode: ForwardClientCertMode::AppendForward,
        set_current: SetCurrentClientCert {
            subject: true,
            cert: true,
            chain: true,
            dns: true,
            uri: true,
        },
    };
    manager.http_filters = vec![HttpFilter::Rbac {
        rules: Some(Arc::new(rbac::by_request()?)),
        stat_prefix: "".into(),
    }];
    Ok(manager)
}

/// The caller's identity out of its certificate's header, a part a rule. It costs many times all the rest, which
/// would not be seen beside it.
fn caller_to_metadata() -> Result<HeaderToMetadata, String> {
    let expression = ".*URI=spiffe://([^/]+.[^/]+)(?:/ap/([^/]+))?/ns/([^/]+)/dc/([^/]+)/svc/([^/;,]+).*";
    let rule = |(index, key): (usize, &str)| {
        let rewrite = RegexRewrite::new(expression, &format!("\\{}", index + 1));
        Ok(HeaderToMetadataRule {
            source: MetadataSource::Header("x-forwarded-client-cert".into()),
            on_present: Some(MetadataEntry {
                namespace: "consul".into(),
                key: key.into(),
                value: MetadataValue::Rewritten(rewrite.map_err(|error| error.to_string())?),
                kind: MetadataKind::String,
                base64: false,
            }),
            on_missing: None,
            remove: false,
        })
    };
    let keys = ["trust-domain", "partition", "namespace", "datacenter", "service"];
    Ok(HeaderToMetadata {
        request_rules: keys
            .into_iter()
            .enumerate()
            .map(rule)
            .collect::<Result<_, String>>()?,
        response_rules: Vec::new(),
    })
}
