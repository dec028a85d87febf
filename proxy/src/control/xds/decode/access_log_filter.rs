//! `accesslog.v3.AccessLogFilter`: which connections and requests have a line.

use attache_proto::envoy::config::accesslog::v3::{
    AccessLogFilter as Wire, ComparisonFilter, GrpcStatusFilter, LogTypeFilter, ResponseFlagFilter,
    RuntimeFilter, access_log_filter::FilterSpecifier, comparison_filter::Op, grpc_status_filter::Status,
};
use attache_proto::envoy::data::accesslog::v3::AccessLogType;
use attache_proto::envoy::r#type::v3::fractional_percent::DenominatorType;

use super::common::{enumeration, without_effect};
use super::context::Context;
use super::error::{At, DecodeError};
use super::matcher;
use crate::model::ResponseFlag;
use crate::model::access_log::{AccessLogFilter, Comparison, ComparisonOp, Sample};

/// Filters are read by people; Envoy itself has none deeper than a handful.
const MAX_NESTING: u32 = 16;

/// A filter, with those inside it.
///
/// # Errors
/// Names the filter that is invalid or not supported: without it other lines would be written.
pub(super) fn decode(
    wire: &Wire,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<AccessLogFilter, DecodeError> {
    nested(wire, MAX_NESTING, at, ctx)
}

fn nested(
    wire: &Wire,
    depth: u32,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<AccessLogFilter, DecodeError> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| at.refuse("is nested too deeply"))?;
    match &wire.filter_specifier {
        None => Err(at.refuse("has no filter")),
        Some(FilterSpecifier::ResponseFlagFilter(filter)) => flags(filter, &at.field("response_flag_filter")),
        Some(FilterSpecifier::StatusCodeFilter(filter)) => {
            let at = at.field("status_code_filter");
            comparison(filter.comparison.as_ref(), &at, ctx).map(AccessLogFilter::StatusCode)
        }
        Some(FilterSpecifier::DurationFilter(filter)) => {
            let at = at.field("duration_filter");
            comparison(filter.comparison.as_ref(), &at, ctx).map(AccessLogFilter::Duration)
        }
        // Requests of health checks are those of a filter that is not supported.
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => Ok(AccessLogFilter::All),
        Some(FilterSpecifier::TraceableFilter(_)) => Ok(AccessLogFilter::Traceable),
        Some(FilterSpecifier::RuntimeFilter(filter)) => runtime(filter, &at.field("runtime_filter"), ctx),
        Some(FilterSpecifier::AndFilter(filter)) => {
            all(&filter.filters, depth, &at.field("and_filter"), ctx).map(AccessLogFilter::And)
        }
        Some(FilterSpecifier::OrFilter(filter)) => {
            all(&filter.filters, depth, &at.field("or_filter"), ctx).map(AccessLogFilter::Or)
        }
        Some(FilterSpecifier::HeaderFilter(filter)) => {
            let at = at.field("header_filter");
            let header = filter.header.as_ref().ok_or_else(|| at.refuse("has no header"))?;
            matcher::header(header, &at.field("header")).map(AccessLogFilter::Header)
        }
        Some(FilterSpecifier::GrpcStatusFilter(filter)) => {
            grpc_status(filter, &at.field("grpc_status_filter.statuses"))
        }
        Some(FilterSpecifier::LogTypeFilter(filter)) => log_type(filter, &at.field("log_type_filter.types")),
        Some(FilterSpecifier::MetadataFilter(_)) => {
            Err(at.field("metadata_filter").refuse("is not supported"))
        }
        Some(FilterSpecifier::ExtensionFilter(_)) => {
            Err(at.field("extension_filter").refuse("is not supported"))
        }
    }
}

fn all(
    filters: &[Wire],
    depth: u32,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Vec<AccessLogFilter>, DecodeError> {
    let at = at.field("filters");
    // Envoy's own bound.
    if filters.len() < 2 {
        return Err(at.refuse("has fewer than two filters"));
    }
    let mut decoded = Vec::with_capacity(filters.len());
    for (index, filter) in filters.iter().enumerate() {
        decoded.push(nested(filter, depth, &at.index(index), ctx)?);
    }
    Ok(decoded)
}

fn flags(wire: &ResponseFlagFilter, at: &At<'_>) -> Result<AccessLogFilter, DecodeError> {
    if wire.flags.is_empty() {
        return Ok(AccessLogFilter::AnyFlag);
    }
    let at = at.field("flags");
    let flag = |(index, name): (usize, &String)| {
        ResponseFlag::parse(name)
            .ok_or_else(|| at.index(index).refuse(format!("{name:?} is no response flag")))
    };
    let flags = wire.flags.iter().enumerate().map(flag);
    flags.collect::<Result<_, _>>().map(AccessLogFilter::Flags)
}

fn comparison(
    wire: Option<&ComparisonFilter>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<Comparison, DecodeError> {
    let at = at.field("comparison");
    let wire = wire.ok_or_else(|| at.refuse("is missing"))?;
    let op = match enumeration(wire.op, &at.field("op"))? {
        Op::Eq => ComparisonOp::Equal,
        Op::Ge => ComparisonOp::AtLeast,
        Op::Le => ComparisonOp::AtMost,
        Op::Ne => ComparisonOp::NotEqual,
    };
    let value_at = at.field("value");
    let value = wire.value.as_ref().ok_or_else(|| value_at.refuse("is missing"))?;
    without_effect(&value_at, ctx, &[(!value.runtime_key.is_empty(), "runtime_key")]);
    Ok(Comparison {
        op,
        value: value.default_value,
    })
}

fn runtime(wire: &RuntimeFilter, at: &At<'_>, ctx: &mut Context<'_>) -> Result<AccessLogFilter, DecodeError> {
    without_effect(at, ctx, &[(!wire.runtime_key.is_empty(), "runtime_key")]);
    let percent = wire.percent_sampled.unwrap_or_default();
    let denominator_at = at.field("percent_sampled.denominator");
    let denominator = match enumeration(percent.denominator, &denominator_at)? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Ok(AccessLogFilter::Runtime(Sample {
        numerator: percent.numerator,
        denominator,
        independent: wire.use_independent_randomness,
    }))
}

fn grpc_status(wire: &GrpcStatusFilter, at: &At<'_>) -> Result<AccessLogFilter, DecodeError> {
    let status = |(index, status): (usize, &i32)| {
        enumeration::<Status>(*status, &at.index(index)).map(|status| i64::from(status as i32))
    };
    Ok(AccessLogFilter::GrpcStatus {
        statuses: wire
            .statuses
            .iter()
            .enumerate()
            .map(status)
            .collect::<Result<_, _>>()?,
        exclude: wire.exclude,
    })
}

fn log_type(wire: &LogTypeFilter, at: &At<'_>) -> Result<AccessLogFilter, DecodeError> {
    let name = |(index, kind): (usize, &i32)| {
        enumeration::<AccessLogType>(*kind, &at.index(index)).map(|kind| kind.as_str_name().into())
    };
    Ok(AccessLogFilter::LogType {
        types: wire
            .types
            .iter()
            .enumerate()
            .map(name)
            .collect::<Result<_, _>>()?,
        exclude: wire.exclude,
    })
}

#[cfg(test)]
mod tests {
    use attache_proto::envoy::config::accesslog::v3::{
        AndFilter, DurationFilter, HeaderFilter, OrFilter, StatusCodeFilter,
    };
    use attache_proto::envoy::config::core::v3::RuntimeUInt32;
    use attache_proto::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
    use attache_proto::envoy::r#type::v3::FractionalPercent;

    use super::super::testing::Bench;
    use super::*;

    fn read(filter: FilterSpecifier) -> Result<AccessLogFilter, DecodeError> {
        let wire = Wire {
            filter_specifier: Some(filter),
        };
        decode(
            &wire,
            &At::resource("Listener", "l"),
            &mut Bench::default().context(),
        )
    }

    fn at_least(value: u32) -> Option<ComparisonFilter> {
        Some(ComparisonFilter {
            op: Op::Ge.into(),
            value: Some(RuntimeUInt32 {
                default_value: value,
                runtime_key: "k".to_owned(),
            }),
        })
    }

    fn status(value: u32) -> FilterSpecifier {
        FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
            comparison: at_least(value),
        })
    }

    fn wire(filters: Vec<FilterSpecifier>) -> Vec<Wire> {
        let filters = filters.into_iter();
        filters
            .map(|filter| Wire {
                filter_specifier: Some(filter),
            })
            .collect()
    }

    #[test]
    fn filters_become_what_they_ask() {
        let wanted = |value| Comparison {
            op: ComparisonOp::AtLeast,
            value,
        };
        assert_eq!(
            read(status(400)).unwrap(),
            AccessLogFilter::StatusCode(wanted(400))
        );
        let duration = DurationFilter {
            comparison: at_least(50),
        };
        let duration = read(FilterSpecifier::DurationFilter(duration)).unwrap();
        assert_eq!(duration, AccessLogFilter::Duration(wanted(50)));
        let runtime = RuntimeFilter {
            percent_sampled: Some(FractionalPercent {
                numerator: 5,
                denominator: DenominatorType::TenThousand.into(),
            }),
            ..RuntimeFilter::default()
        };
        let sample = Sample {
            numerator: 5,
            denominator: 10_000,
            independent: false,
        };
        let runtime = read(FilterSpecifier::RuntimeFilter(runtime)).unwrap();
        assert_eq!(runtime, AccessLogFilter::Runtime(sample));
        let grpc = GrpcStatusFilter {
            statuses: vec![Status::PermissionDenied.into()],
            exclude: true,
        };
        let denied = AccessLogFilter::GrpcStatus {
            statuses: vec![7],
            exclude: true,
        };
        assert_eq!(read(FilterSpecifier::GrpcStatusFilter(grpc)).unwrap(), denied);
        let types = LogTypeFilter {
            types: vec![AccessLogType::DownstreamEnd.into()],
            exclude: false,
        };
        let ends = AccessLogFilter::LogType {
            types: vec!["DownstreamEnd".into()],
            exclude: false,
        };
        assert_eq!(read(FilterSpecifier::LogTypeFilter(types)).unwrap(), ends);
        let header = FilterSpecifier::HeaderFilter(HeaderFilter {
            header: Some(HeaderMatcher {
                name: "X-A".to_owned(),
                header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
                ..HeaderMatcher::default()
            }),
        });
        assert!(matches!(read(header).unwrap(), AccessLogFilter::Header(header) if &*header.name == "x-a"));
        let filters = wire(vec![status(1), status(2)]);
        let both = vec![
            AccessLogFilter::StatusCode(wanted(1)),
            AccessLogFilter::StatusCode(wanted(2)),
        ];
        let and = FilterSpecifier::AndFilter(AndFilter {
            filters: filters.clone(),
        });
        assert_eq!(read(and).unwrap(), AccessLogFilter::And(both.clone()));
        let or = FilterSpecifier::OrFilter(OrFilter { filters });
        assert_eq!(read(or).unwrap(), AccessLogFilter::Or(both));
        assert_eq!(
            read(FilterSpecifier::NotHealthCheckFilter(Default::default())).unwrap(),
            AccessLogFilter::All
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let path = |filter| read(filter).unwrap_err().path;
        let filters = wire(vec![
            status(1),
            FilterSpecifier::DurationFilter(DurationFilter { comparison: None }),
        ]);
        let and = FilterSpecifier::AndFilter(AndFilter { filters });
        assert_eq!(path(and), "and_filter.filters[1].duration_filter.comparison");
        let alone = FilterSpecifier::OrFilter(OrFilter {
            filters: wire(vec![status(1)]),
        });
        assert_eq!(path(alone), "or_filter.filters");
        assert_eq!(
            path(FilterSpecifier::MetadataFilter(Default::default())),
            "metadata_filter"
        );
        let mut deep = status(1);
        for _ in 0..20 {
            deep = FilterSpecifier::AndFilter(AndFilter {
                filters: wire(vec![deep, status(2)]),
            });
        }
        assert!(read(deep).unwrap_err().to_string().contains("nested too deeply"));
    }
}
