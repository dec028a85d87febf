//! How long a stream may take by its route (`route.v3.RouteAction.MaxStreamDuration`) and the `grpc-timeout` of
//! its request. Keeping the time is `clock`'s business.

use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::model::route::MaxStreamDuration;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The most that the eight digits of gRPC's protocol can say.
const MAX_VALUE: u128 = 99_999_999;

/// The limit of a stream, none without one; `inherited` is the connection manager's. To the upstream of a gRPC
/// call it is told as `grpc-timeout`, as Envoy does; a route that ends the manager's limit tells of none.
pub(super) fn of(
    limits: &MaxStreamDuration,
    inherited: Option<Duration>,
    is_grpc: bool,
    headers: &mut HeaderMap,
) -> Option<Duration> {
    let asked = headers
        .get(GRPC_TIMEOUT)
        .and_then(|value| parse(value.as_bytes()));
    let limit = match (asked, limits.grpc_timeout_header_max) {
        (Some(asked), Some(max)) => {
            let capped = if max.is_zero() { asked } else { asked.min(max) };
            Some(capped.saturating_sub(limits.grpc_timeout_header_offset))
        }
        _ => limits.limit.or(inherited).filter(|limit| !limit.is_zero()),
    };
    if is_grpc {
        match limit {
            Some(limit) => {
                headers.insert(GRPC_TIMEOUT, written(limit));
            }
            None if inherited.is_some() => {
                headers.remove(GRPC_TIMEOUT);
            }
            None => {}
        }
    }
    limit
}

/// gRPC's `Timeout`, one to eight digits and a unit, rounded up to milliseconds as in Envoy.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_millis(number.div_ceil(1_000)),
        b'n' => Duration::from_millis(number.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// In milliseconds, and in the next larger unit only where they are too many.
fn written(limit: Duration) -> HeaderValue {
    let units = [(1, 'm'), (1_000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let in_unit = |(size, unit): (u128, char)| (limit.as_millis() / size, unit);
    let (number, unit) = units
        .into_iter()
        .map(in_unit)
        .find(|(number, _)| *number <= MAX_VALUE)
        .unwrap_or((MAX_VALUE, 'H'));
    HeaderValue::from_str(&format!("{number}{unit}")).unwrap_or(HeaderValue::from_static("0m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPPED: MaxStreamDuration = MaxStreamDuration {
        limit: Some(Duration::from_secs(7)),
        grpc_timeout_header_max: Some(Duration::from_secs(5)),
        grpc_timeout_header_offset: Duration::from_millis(50),
    };

    /// The limit in milliseconds and what the upstream is told of it, where the manager's limit is `inherited`.
    fn limited(limits: MaxStreamDuration, inherited: Option<u64>, header: &str) -> (Option<u128>, String) {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_str(header).unwrap());
        let limit = of(&limits, inherited.map(Duration::from_secs), true, &mut headers);
        let told = headers.get(GRPC_TIMEOUT).map(|value| value.to_str().unwrap());
        (
            limit.map(|limit| limit.as_millis()),
            told.unwrap_or("none").to_owned(),
        )
    }

    #[test]
    fn the_header_counts_where_it_may() {
        for (header, limit, told) in [
            ("200m", 150, "150m"),
            ("1H", 4950, "4950m"),
            ("20m", 0, "0m"),
            ("200001u", 151, "151m"),
            ("99999999n", 50, "50m"),
            ("x", 7000, "7000m"),
            ("", 7000, "7000m"),
            ("1", 7000, "7000m"),
            ("+1S", 7000, "7000m"),
            ("123456789m", 7000, "7000m"),
        ] {
            let expected = (Some(limit), told.to_owned());
            assert_eq!(limited(CAPPED, None, header), expected, "{header:?}");
        }
        let mut headers = HeaderMap::new();
        let limit = of(&CAPPED, None, false, &mut headers);
        assert_eq!(limit, CAPPED.limit);
        assert!(headers.is_empty(), "no gRPC is told of no limit");
    }

    #[test]
    fn zero_has_no_limit_and_none_the_managers() {
        let own = |limit| MaxStreamDuration {
            limit,
            ..MaxStreamDuration::default()
        };
        let zero = own(Some(Duration::ZERO));
        assert_eq!(limited(zero, Some(9), "1S"), (None, "none".to_owned()));
        assert_eq!(limited(zero, None, "1S"), (None, "1S".to_owned()));
        assert_eq!(
            limited(own(None), Some(9), "1S"),
            (Some(9000), "9000m".to_owned())
        );
        let endless = MaxStreamDuration {
            grpc_timeout_header_max: Some(Duration::ZERO),
            ..MaxStreamDuration::default()
        };
        for (header, told) in [
            ("27777H", "99997200S"),
            ("27778H", "1666680M"),
            ("99999999H", "99999999H"),
        ] {
            assert_eq!(limited(endless, None, header).1, told);
        }
    }
}
