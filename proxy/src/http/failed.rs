//! Tries that failed, and the answers to a downstream whose request had no better one, in Envoy's words.

use std::rc::Rc;

use hyper::StatusCode;

use super::connection::Connection;
use super::exchange::ExchangeError;
use super::local_reply::LocalReply;
use super::not_sent;
use super::retry::{Failure, Retries};
use super::route::Plan;
use crate::telemetry::ResponseFlag;
use crate::upstream::ConnectError;
use crate::upstream::cluster::ClusterState;

/// What a failed try leaves.
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// Some of the request was sent.
    pub(super) sent: bool,
    pub(super) cluster: Option<Rc<ClusterState>>,
    pub(super) why: FailedBy,
}

/// By what a try failed.
pub(super) enum FailedBy {
    Connect(ConnectError),
    Exchange(ExchangeError),
    PerTryTimeout,
}

impl Failed {
    pub(super) fn into_reply(
        self,
        plan: &Plan<'_>,
        retries: &Retries,
        connection: &Connection,
    ) -> LocalReply {
        let mut reply = self.reply(plan, retries.attempts > 1);
        not_sent::say(&mut reply, &self, retries, connection);
        reply
    }

    fn reply(&self, plan: &Plan<'_>, retried: bool) -> LocalReply {
        match &self.why {
            FailedBy::Connect(error) => LocalReply::connect(error, plan.not_found, retried),
            FailedBy::PerTryTimeout => LocalReply::text(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream request timeout",
                "upstream_per_try_timeout",
            )
            .because(
                ResponseFlag::UpstreamRequestTimeout,
                "no response within the time of one try",
            ),
            FailedBy::Exchange(error) => {
                let why = error.to_string();
                match error {
                    ExchangeError::Ended { .. } | ExchangeError::GoneAway => LocalReply::before_headers(
                        "connection termination",
                        retried,
                        "upstream_reset_before_response_started{connection_termination}",
                    )
                    .because(ResponseFlag::UpstreamConnectionTermination, &why),
                    ExchangeError::Reset(_) | ExchangeError::Refused => LocalReply::before_headers(
                        if matches!(error, ExchangeError::Refused) {
                            "remote refused stream reset"
                        } else {
                            "remote reset"
                        },
                        retried,
                        "upstream_reset_before_response_started{remote_reset}",
                    )
                    .because(ResponseFlag::UpstreamRemoteReset, &why),
                    ExchangeError::Protocol(_) => {
                        let reply = LocalReply::before_headers(
                            "protocol error",
                            retried,
                            "upstream_reset_before_response_started{protocol_error}",
                        );
                        LocalReply {
                            status: StatusCode::BAD_GATEWAY,
                            ..reply
                        }
                        .because(ResponseFlag::UpstreamProtocolError, &why)
                    }
                }
            }
        }
    }
}
