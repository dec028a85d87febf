//! The HTTP filters before the router, in their order.

use crate::http::local_reply::LocalReply;
use crate::http::message::RequestView;
use crate::http::stream::{Stop, Stream};
use crate::model::http::HttpFilter;
use crate::model::{Action, Rbac};
use crate::telemetry::ResponseFlag;

/// Runs them on a request.
///
/// # Errors
/// The answer of a filter that lets the request go no further.
pub(in crate::http) async fn run(stream: &Stream) -> Result<(), Stop> {
    for filter in &stream.manager.http_filters {
        match filter {
            HttpFilter::Rbac {
                rules: Some(rules), ..
            } => {
                if let Some(policy) = denied_by(rules, stream) {
                    return Err(LocalReply::text(
                        hyper::StatusCode::FORBIDDEN,
                        "RBAC: access denied",
                        "rbac_access_denied",
                    )
                    .because(ResponseFlag::UnauthorizedDetails, &format!("denied by {policy}"))
                    .into());
                }
            }
            HttpFilter::Rbac { rules: None, .. }
            | HttpFilter::JwtAuthn(_)
            | HttpFilter::HeaderToMetadata(_)
            | HttpFilter::GrpcStats(_)
            | HttpFilter::GrpcHttp1Bridge => {}
        }
    }
    Ok(())
}

/// The rule by which the newest configuration would keep a request out that is under way.
pub(in crate::http) fn denied_now(stream: &Stream) -> Option<std::sync::Arc<str>> {
    let manager = (stream.connection.manager)();
    manager.http_filters.iter().find_map(|filter| match filter {
        HttpFilter::Rbac {
            rules: Some(rules), ..
        } => denied_by(rules, stream),
        _ => None,
    })
}

fn denied_by(rules: &Rbac, stream: &Stream) -> Option<std::sync::Arc<str>> {
    let (head, metadata) = (stream.head.borrow(), stream.metadata.borrow());
    let view = RequestView {
        head: &head,
        metadata: &metadata,
    };
    let verdict = rules.evaluate(&stream.downstream.borrow(), Some(&view));
    (verdict.action == Action::Deny).then_some(verdict.policy)
}
