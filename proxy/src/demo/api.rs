//! count-api: the service that is protected. It counts the requests it gets, and knows nothing of
//! the mesh.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use serde_json::json;
use tokio::net::TcpListener;

use super::serve::{self, json_response};

/// Answers here without counting, for the connection that is held open.
pub(super) const UNCOUNTED_PATH: &str = "/live";

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener) {
    let count = Arc::new(AtomicU64::new(0));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname: Arc<str> = hostname.trim().into();
    let service = service_fn(move |request: Request<Incoming>| {
        let (count, hostname) = (Arc::clone(&count), Arc::clone(&hostname));
        async move { Ok::<_, Infallible>(answer(request.uri().path(), &count, &hostname)) }
    });
    serve::connections(listener, service).await;
}

fn answer(path: &str, count: &AtomicU64, hostname: &str) -> Response<Full<Bytes>> {
    let count = if path == UNCOUNTED_PATH {
        count.load(Ordering::Relaxed)
    } else {
        count.fetch_add(1, Ordering::Relaxed) + 1
    };
    json_response(200, &json!({ "count": count, "hostname": hostname }))
}
