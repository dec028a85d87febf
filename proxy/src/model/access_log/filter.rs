//! Which connections and requests have a line (Envoy's `AccessLogFilter`): pure decisions.

use std::sync::Arc;
use std::time::Duration;

use crate::model::flags::{ResponseFlag, ResponseFlags};
use crate::model::matcher::{HeaderMatcher, Request};

/// Envoy's `AccessLogFilter`, as far as it can be configured here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogFilter {
    /// No filter: everything has a line. `not_health_check_filter` too, since no request is a health check.
    #[default]
    All,
    /// `response_flag_filter` without flags: what ended with any flag.
    AnyFlag,
    /// `response_flag_filter`: what ended with one of these at least.
    Flags(Vec<ResponseFlag>),
    /// `status_code_filter`; 0 where there was no response.
    StatusCode(Comparison),
    /// `duration_filter`: milliseconds.
    Duration(Comparison),
    /// `traceable_filter`: what has a span.
    Traceable,
    /// `runtime_filter`: a share of all.
    Runtime(Sample),
    /// `and_filter`.
    And(Vec<AccessLogFilter>),
    /// `or_filter`.
    Or(Vec<AccessLogFilter>),
    /// `header_filter`: of the request.
    Header(HeaderMatcher),
    /// `grpc_status_filter`: of any request, gRPC or not.
    GrpcStatus {
        /// gRPC's numbers.
        statuses: Vec<i64>,
        /// Turns the answer round.
        exclude: bool,
    },
    /// `log_type_filter`.
    LogType {
        /// Envoy's names, such as `DownstreamEnd`.
        types: Vec<Arc<str>>,
        /// Turns the answer round.
        exclude: bool,
    },
}

/// Envoy's `ComparisonFilter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// How the fact is compared with [`Self::value`].
    pub op: ComparisonOp,
    /// `default_value`; the runtime key beside it changes nothing.
    pub value: u32,
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonOp {
    /// `EQ`.
    Equal,
    /// `GE`: the fact is not less.
    AtLeast,
    /// `LE`: the fact is not more.
    AtMost,
    /// `NE`.
    NotEqual,
}

/// Which share of requests has a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// This many...
    pub numerator: u32,
    /// ...of this many: 100, 10,000 or 1,000,000.
    pub denominator: u32,
    /// Draws a number for each line. Otherwise the request's `x-request-id` decides, the same in each proxy
    /// on its way.
    pub independent: bool,
}

/// What a filter looks at: a connection or request at its end.
pub trait Ended: Request {
    /// Why it ended as it did.
    fn flags(&self) -> ResponseFlags;
    /// The response's status; 0 without one.
    fn status(&self) -> u16;
    /// From its start to its end.
    fn duration(&self) -> Duration;
    /// The gRPC status, or what the HTTP status stands for in gRPC; none without a response.
    fn grpc_status(&self) -> Option<i64>;
    /// Whether it has a span.
    fn traced(&self) -> bool;
    /// `x-request-id`.
    fn request_id(&self) -> Option<&str>;
    /// A number at random.
    fn random(&self) -> u64;
    /// Envoy's name of what the line is about.
    fn log_type(&self) -> &str;
}

/// gRPC's `UNKNOWN`, which is what Envoy takes where there is no status.
const GRPC_UNKNOWN: i64 = 2;

impl AccessLogFilter {
    /// Whether what ended so has a line.
    pub fn takes(&self, ended: &dyn Ended) -> bool {
        match self {
            Self::All => true,
            Self::AnyFlag => !ended.flags().is_empty(),
            Self::Flags(wanted) => wanted.iter().any(|flag| ended.flags().contains(*flag)),
            Self::StatusCode(comparison) => comparison.holds(ended.status().into()),
            Self::Duration(comparison) => comparison.holds(ended.duration().as_millis()),
            Self::Traceable => ended.traced(),
            Self::Runtime(sample) => sample.takes(ended),
            Self::And(filters) => filters.iter().all(|filter| filter.takes(ended)),
            Self::Or(filters) => filters.iter().any(|filter| filter.takes(ended)),
            Self::Header(matcher) => matcher.matches(ended),
            Self::GrpcStatus { statuses, exclude } => {
                statuses.contains(&ended.grpc_status().unwrap_or(GRPC_UNKNOWN)) != *exclude
            }
            Self::LogType { types, exclude } => {
                types.iter().any(|name| **name == *ended.log_type()) != *exclude
            }
        }
    }
}

impl Comparison {
    fn holds(self, fact: u128) -> bool {
        let value = u128::from(self.value);
        match self.op {
            ComparisonOp::Equal => fact == value,
            ComparisonOp::AtLeast => fact >= value,
            ComparisonOp::AtMost => fact <= value,
            ComparisonOp::NotEqual => fact != value,
        }
    }
}

impl Sample {
    fn takes(self, ended: &dyn Ended) -> bool {
        let id = ended
            .request_id()
            .filter(|_| !self.independent)
            .and_then(uuid_start);
        let drawn = id.unwrap_or_else(|| ended.random());
        drawn % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// The first eight digits of a UUID, by which Envoy chooses; none of what is no UUID.
fn uuid_start(id: &str) -> Option<u64> {
    let hyphens = [8, 13, 18, 23];
    let is_uuid = id.len() == 36
        && id
            .bytes()
            .enumerate()
            .all(|(at, byte)| match hyphens.contains(&at) {
                true => byte == b'-',
                false => byte.is_ascii_hexdigit(),
            });
    if !is_uuid {
        return None;
    }
    u64::from_str_radix(id.get(..8)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::model::matcher::{HeaderCheck, StringMatcher};

    /// A request to `/a` with `x-l: 1`.
    struct One {
        flags: ResponseFlags,
        status: u16,
        grpc: Option<i64>,
        id: Option<&'static str>,
    }

    impl Request for One {
        fn header(&self, name: &str) -> Option<Cow<'_, str>> {
            (name == "x-l").then_some("1".into())
        }

        fn path(&self) -> &str {
            "/a"
        }

        fn metadata(&self, _: &str, _: &[Arc<str>]) -> Option<Cow<'_, str>> {
            None
        }
    }

    impl Ended for One {
        fn flags(&self) -> ResponseFlags {
            self.flags
        }

        fn status(&self) -> u16 {
            self.status
        }

        fn duration(&self) -> Duration {
            Duration::from_micros(50_999)
        }

        fn grpc_status(&self) -> Option<i64> {
            self.grpc
        }

        fn traced(&self) -> bool {
            false
        }

        fn request_id(&self) -> Option<&str> {
            self.id
        }

        fn random(&self) -> u64 {
            49
        }

        fn log_type(&self) -> &str {
            "DownstreamEnd"
        }
    }

    fn with(flags: &[ResponseFlag]) -> One {
        One {
            flags: flags.iter().copied().collect(),
            status: 200,
            grpc: None,
            id: None,
        }
    }

    #[test]
    fn a_filter_takes_what_ended_with_one_of_its_flags() {
        use ResponseFlag as F;
        let nr = AccessLogFilter::Flags(vec![F::NoRouteFound, F::None]);
        for (filter, flags, taken) in [
            (&AccessLogFilter::All, &[][..], true),
            (&AccessLogFilter::AnyFlag, &[], false),
            (&AccessLogFilter::AnyFlag, &[F::None], false),
            (&AccessLogFilter::AnyFlag, &[F::NoClusterFound], true),
            (&nr, &[], false),
            (&nr, &[F::None], false),
            (&nr, &[F::NoClusterFound], false),
            (&nr, &[F::NoClusterFound, F::NoRouteFound], true),
        ] {
            assert_eq!(filter.takes(&with(flags)), taken, "{filter:?} {flags:?}");
        }
    }

    #[test]
    fn numbers_are_compared_as_envoy_does() {
        use ComparisonOp as Op;
        for (op, value, taken) in [
            (Op::Equal, 200, true),
            (Op::Equal, 0, false),
            (Op::AtLeast, 200, true),
            (Op::AtLeast, 201, false),
            (Op::AtMost, 200, true),
            (Op::AtMost, 199, false),
            (Op::NotEqual, 200, false),
            (Op::NotEqual, 404, true),
        ] {
            let filter = AccessLogFilter::StatusCode(Comparison { op, value });
            assert_eq!(filter.takes(&with(&[])), taken, "{op:?} {value}");
        }
        let duration = |op, value| AccessLogFilter::Duration(Comparison { op, value }).takes(&with(&[]));
        // Whole milliseconds.
        assert!(duration(Op::Equal, 50) && duration(Op::AtMost, 50) && !duration(Op::AtLeast, 51));
    }

    #[test]
    fn what_is_not_known_of_grpc_is_unknown() {
        let filter = |statuses: &[i64], exclude| AccessLogFilter::GrpcStatus {
            statuses: statuses.to_vec(),
            exclude,
        };
        let ended = |grpc| One { grpc, ..with(&[]) };
        assert!(filter(&[7], false).takes(&ended(Some(7))));
        assert!(!filter(&[7], false).takes(&ended(Some(5))));
        assert!(!filter(&[0], true).takes(&ended(Some(0))));
        assert!(filter(&[2], false).takes(&ended(None)) && filter(&[0], true).takes(&ended(None)));
    }

    #[test]
    fn filters_are_put_together() {
        let header = |value: &str| {
            AccessLogFilter::Header(HeaderMatcher {
                name: "x-l".into(),
                check: HeaderCheck::Value(StringMatcher::exact(value)),
                invert: false,
                missing_as_empty: false,
            })
        };
        let (yes, no) = (header("1"), header("2"));
        let all = |filters: [&AccessLogFilter; 2]| filters.map(Clone::clone).to_vec();
        let one = with(&[]);
        assert!(yes.takes(&one) && !no.takes(&one));
        assert!(!AccessLogFilter::And(all([&yes, &no])).takes(&one));
        assert!(AccessLogFilter::And(all([&yes, &yes])).takes(&one));
        assert!(AccessLogFilter::Or(all([&no, &yes])).takes(&one));
        assert!(!AccessLogFilter::Or(all([&no, &no])).takes(&one));
        assert!(!AccessLogFilter::Traceable.takes(&one));
        let types = |name: &str, exclude| AccessLogFilter::LogType {
            types: vec![name.into()],
            exclude,
        };
        assert!(types("DownstreamEnd", false).takes(&one) && !types("DownstreamEnd", true).takes(&one));
        assert!(!types("NotSet", false).takes(&one));
    }

    /// The answers are those of an Envoy with these requests.
    #[test]
    fn a_share_goes_by_the_request_id() {
        let half = |independent| {
            AccessLogFilter::Runtime(Sample {
                numerator: 50,
                denominator: 100,
                independent,
            })
        };
        for (id, taken) in [
            ("00000000-5e1b-4b8f-9d7a-0123456789ab", true),
            ("00000031-5e1b-4b8f-9d7a-0123456789ab", true),
            ("00000032-5e1b-4b8f-9d7a-0123456789ab", false),
            ("00000063-5e1b-4b8f-9d7a-0123456789ab", false),
            ("00000064-5e1b-4b8f-9d7a-0123456789ab", true),
            ("00000097-5e1b-4b8f-9d7a-0123456789ab", false),
            ("ffffffff-5e1b-4b8f-9d7a-0123456789ab", false),
            // None, by which a number is drawn: it is 49 here.
            ("zz", true),
            ("00000063+5e1b-4b8f-9d7a-0123456789ab", true),
        ] {
            let one = One {
                id: Some(id),
                ..with(&[])
            };
            assert_eq!(half(false).takes(&one), taken, "{id}");
            assert!(half(true).takes(&one), "{id}");
        }
    }
}
