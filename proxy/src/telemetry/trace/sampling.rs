//! Whether a request is traced, and the trace reason that `x-request-id` carries.

use super::TraceReason;
use crate::model::http::{Sampling, Tracing};

/// Where the trace reason is in a request ID: the version of the UUID.
const REASON_AT: usize = 14;

/// A UUID has this many characters.
const UUID_LENGTH: usize = 36;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceAsked {
    /// It has `x-client-trace-id`.
    pub client_trace_id: bool,
    /// It has `x-envoy-force-trace`, which the connection manager takes away from requests that come from
    /// outside.
    pub force_trace: bool,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why it is traced or is not.
    pub reason: TraceReason,
    /// What `x-request-id` becomes, where it changes.
    pub request_id: Option<String>,
}

/// Decides about a request with this `request_id`, in Envoy's order: what an earlier proxy wrote into it, the
/// client's wish, the service's, chance. Chance is the request ID itself, so that all proxies agree. `random`
/// is any number, for the client's wish.
pub fn decide(tracing: &Tracing, request_id: Option<&str>, asked: TraceAsked, random: u16) -> Decision {
    let none = Decision {
        reason: TraceReason::NotTraceable,
        request_id: None,
    };
    let Some(request_id) = request_id else { return none };
    let number = request_id
        .get(..8)
        .filter(|head| head.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|head| u32::from_str_radix(head, 16).ok());
    let Some(number) = number else { return none };
    let chance = u16::try_from(number % 10_000).unwrap_or(0);
    let within = |share: Sampling, chance: u16| chance < share.of_ten_thousand();
    let mut reason = reason_in(request_id);
    if reason == TraceReason::NotTraceable {
        reason = if asked.client_trace_id && within(tracing.client_sampling, random % 10_000) {
            TraceReason::ClientForced
        } else if asked.force_trace {
            TraceReason::ServiceForced
        } else if within(tracing.random_sampling, chance) {
            TraceReason::Sampling
        } else {
            reason
        };
    }
    if !within(tracing.overall_sampling, chance) {
        reason = TraceReason::NotTraceable;
    }
    Decision {
        reason,
        request_id: with_reason(request_id, reason),
    }
}

/// The reason that a request ID carries.
fn reason_in(request_id: &str) -> TraceReason {
    if request_id.len() != UUID_LENGTH {
        return TraceReason::NotTraceable;
    }
    match request_id.as_bytes().get(REASON_AT) {
        Some(b'9') => TraceReason::Sampling,
        Some(b'a') => TraceReason::ServiceForced,
        Some(b'b') => TraceReason::ClientForced,
        _ => TraceReason::NotTraceable,
    }
}

/// The request ID with `reason` in it, unless that is what it says already, or it is no UUID.
fn with_reason(request_id: &str, reason: TraceReason) -> Option<String> {
    let digit = match reason {
        TraceReason::NotTraceable => "4",
        TraceReason::Sampling => "9",
        TraceReason::ServiceForced => "a",
        TraceReason::ClientForced => "b",
    };
    if request_id.len() != UUID_LENGTH {
        return None;
    }
    let (head, tail) = (request_id.get(..REASON_AT)?, request_id.get(REASON_AT + 1..)?);
    if request_id[REASON_AT..].starts_with(digit) {
        return None;
    }
    Some(format!("{head}{digit}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracing(client: f64, random: f64, overall: f64) -> Tracing {
        let share = |percent| Sampling::from_percent(percent).unwrap();
        Tracing {
            client_sampling: share(client),
            random_sampling: share(random),
            overall_sampling: share(overall),
            verbose: false,
            max_path_tag_length: 256,
            custom_tags: Vec::new(),
            provider: None,
            spawn_upstream_span: false,
            no_context_propagation: false,
        }
    }

    fn id(reason: char) -> String {
        format!("20aec037-63dc-{reason}310-a7fd-7d1aefcd915d")
    }

    const CLIENT: TraceAsked = TraceAsked {
        client_trace_id: true,
        force_trace: false,
    };
    const FORCE: TraceAsked = TraceAsked {
        client_trace_id: false,
        force_trace: true,
    };

    /// As a real Envoy was seen to change the same IDs.
    #[test]
    fn the_request_id_says_why() {
        let all = tracing(100.0, 100.0, 100.0);
        let none = tracing(100.0, 0.0, 100.0);
        for (config, came, asked, reason, went) in [
            (&all, '4', TraceAsked::default(), TraceReason::Sampling, '9'),
            (&all, '9', TraceAsked::default(), TraceReason::Sampling, '9'),
            (&all, 'a', TraceAsked::default(), TraceReason::ServiceForced, 'a'),
            (&all, 'b', TraceAsked::default(), TraceReason::ClientForced, 'b'),
            (&all, '4', CLIENT, TraceReason::ClientForced, 'b'),
            (&all, '4', FORCE, TraceReason::ServiceForced, 'a'),
            (&none, '4', TraceAsked::default(), TraceReason::NotTraceable, '4'),
            (&none, '4', CLIENT, TraceReason::ClientForced, 'b'),
            (&none, 'a', TraceAsked::default(), TraceReason::ServiceForced, 'a'),
            (&none, '7', TraceAsked::default(), TraceReason::NotTraceable, '4'),
        ] {
            let decision = decide(config, Some(&id(came)), asked, 0);
            assert_eq!(decision.reason, reason, "{came} {asked:?}");
            let request_id = decision.request_id.unwrap_or_else(|| id(came));
            assert_eq!(request_id, id(went), "{came} {asked:?}");
        }
    }

    #[test]
    fn shares_of_requests_are_traced() {
        let number = u16::try_from(0x20ae_c037_u32 % 10_000).unwrap();
        let just = tracing(50.0, f64::from(number + 1) / 100.0, 100.0);
        let not_quite = tracing(50.0, f64::from(number) / 100.0, 100.0);
        let request_id = id('4');
        let reason =
            |config: &Tracing, asked, random| decide(config, Some(&request_id), asked, random).reason;
        assert_eq!(reason(&just, TraceAsked::default(), 0), TraceReason::Sampling);
        assert_eq!(
            reason(&not_quite, TraceAsked::default(), 0),
            TraceReason::NotTraceable
        );
        assert_eq!(reason(&not_quite, CLIENT, 4_999), TraceReason::ClientForced);
        assert_eq!(reason(&not_quite, CLIENT, 5_000), TraceReason::NotTraceable);
        // What bounds them all takes the reason away from the ID too.
        let bounded = tracing(100.0, 100.0, 0.0);
        let decision = decide(&bounded, Some(&id('a')), FORCE, 0);
        assert_eq!(decision.reason, TraceReason::NotTraceable);
        assert_eq!(decision.request_id, Some(id('4')));
    }

    #[test]
    fn ids_that_are_none_are_left_alone() {
        let all = tracing(100.0, 100.0, 100.0);
        for request_id in [
            None,
            Some(""),
            Some("garbage"),
            Some("zzzzzzzz-long-enough"),
            Some("+1234567"),
            Some("ééééé"),
        ] {
            let decision = decide(&all, request_id, FORCE, 0);
            let wanted = Decision {
                reason: TraceReason::NotTraceable,
                request_id: None,
            };
            assert_eq!(decision, wanted, "{request_id:?}");
        }
        // A number is there, a place for the reason is not.
        let decision = decide(&all, Some("12345678"), FORCE, 0);
        assert_eq!(
            (decision.reason, decision.request_id),
            (TraceReason::ServiceForced, None)
        );
    }
}
