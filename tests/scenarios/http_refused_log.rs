//! The access log of what never became a request, beside a real Envoy.

use std::net::SocketAddr;

use attache_tests::envoy::{Program, Static, place};
use attache_tests::http::wire::Wire;
use attache_tests::{Folder, eventually, free_port};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::xds_mesh::OURS;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

const FORMAT: &str = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %REQ(:METHOD)% %REQ(:PATH)% \
    %REQ(HOST)% %PROTOCOL% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %ROUTE_NAME% \
    %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n";

/// Each is sent on a connection of its own, and refused.
const MESSAGES: [&str; 9] = [
    "GET / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: nonsense\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: h\r\ncontent-length: x\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: h\r\nbad name: x\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n",
    "GET / HTTP/1.1\r\nno colon\r\n\r\n",
    "NONSENSE\r\n\r\n",
    "G@T / HTTP/1.1\r\nhost: h\r\n\r\n",
    "GET / HTTP/3.7\r\nhost: h\r\n\r\n",
];

async fn run(program: Program) -> Option<Vec<String>> {
    let (folder, at) = (Folder::new(), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let log = json!({ "name": "envoy.access_loggers.file", "typed_config": {
        "@type": format!("{TYPE}.access_loggers.file.v3.FileAccessLog"), "path": folder.file("log"),
        "log_format": { "text_format_source": { "inline_string": FORMAT } } }});
    let manager = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "main", "access_log": [log],
        "route_config": { "name": "routes", "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "direct_response": { "status": 200 } }] }] },
        "http_filters": [{ "name": "envoy.filters.http.router",
            "typed_config": { "@type": format!("{TYPE}.filters.http.router.v3.Router") } }],
    });
    let listener: Value = json!({ "name": "main", "address": place(at), "filter_chains": [{ "filters": [
        { "name": "envoy.filters.network.http_connection_manager", "typed_config": manager } ] }] });
    let arguments = ["--concurrency", "1", "--file-flush-interval-msec", "50"];
    let resources = json!({ "listeners": [listener] });
    let _proxy = Static::start_with(program, &resources, &arguments).await?;
    let mut lines = Vec::new();
    for (number, message) in MESSAGES.iter().enumerate() {
        let mut wire = Wire::new(TcpStream::connect(at).await.unwrap());
        wire.send(message.as_bytes()).await;
        wire.rest().await;
        lines = eventually(&format!("{program:?} tells of {message:?}"), || async {
            let text = std::fs::read_to_string(folder.path("log")).ok()?;
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() > number).then_some(lines)
        })
        .await;
    }
    Some(lines)
}

#[tokio::test]
async fn http_refused_log() {
    let Some(envoy) = run(Program::Envoy).await else {
        return;
    };
    let ours = run(OURS).await.unwrap();
    let both = MESSAGES.iter().zip(envoy.iter().zip(&ours));
    let differ: Vec<String> = both
        .filter(|(_, (envoy, ours))| envoy != ours)
        .map(|(message, (envoy, ours))| format!("{message:?}\n  envoy {envoy}\n  ours  {ours}"))
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
