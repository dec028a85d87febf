//! Small readers that every resource type uses: `Any`, durations, enumerations, fields without effect.

use std::time::Duration;

use attache_proto::TypeUrl;
use prost::Message;
use prost_types::Any;

use super::context::Context;
use super::error::{At, DecodeError};

/// Protobuf's own bound of a `Duration`, 10,000 years.
const MAX_SECONDS: u64 = 315_576_000_000;

/// The name of the type in an `Any`, without what stands before the slash.
pub(super) fn type_name(any: &Any) -> &str {
    any.type_url
        .rsplit_once('/')
        .map_or(any.type_url.as_str(), |(_, name)| name)
}

/// The message in an `Any`, which must be of the type.
pub(super) fn unpack<T: Message + Default + TypeUrl>(any: &Any, at: &At<'_>) -> Result<T, DecodeError> {
    let name = type_name(any);
    if name == T::TYPE_NAME {
        parse(&any.value, at)
    } else {
        Err(at.refuse(format!("is a {name:?} where a {} is expected", T::TYPE_NAME)))
    }
}

/// The message that these bytes are.
pub(super) fn parse<T: Message + Default + TypeUrl>(bytes: &[u8], at: &At<'_>) -> Result<T, DecodeError> {
    // The error names fields and quotes no bytes.
    T::decode(bytes).map_err(|error| at.refuse(format!("is no valid {}: {error}", T::TYPE_NAME)))
}

/// Looks for fields that are unknown here in the bytes of a resource: an error within messages that decide
/// who gets in, a notice elsewhere.
pub(super) fn known_fields<T: TypeUrl>(
    bytes: &[u8],
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<(), DecodeError> {
    let unknown = attache_proto::unknown_fields(T::TYPE_NAME, bytes)
        .map_err(|error| at.field(&error.path).refuse(error.problem))?;
    for field in unknown {
        let inner = at.field(&field.path);
        let place = if field.path == T::TYPE_NAME { at } else { &inner };
        let number = field.number;
        if field.strict {
            return Err(place.refuse(format!(
                "has a field of number {number} that is unknown here and may decide who gets in"
            )));
        }
        ctx.notice(
            place,
            &format!("has a field of number {number} that is unknown here and has no effect"),
        );
    }
    Ok(())
}

/// Refuses the first field that is set.
pub(super) fn unsupported(at: &At<'_>, fields: &[(bool, &str)]) -> Result<(), DecodeError> {
    match fields.iter().find(|(is_set, _)| *is_set) {
        Some((_, field)) => Err(at.field(field).refuse("is not supported")),
        None => Ok(()),
    }
}

/// Notes every field that is set: the outcome is the same without it, or nearly so.
pub(super) fn without_effect(at: &At<'_>, ctx: &mut Context<'_>, fields: &[(bool, &str)]) {
    for (_, field) in fields.iter().filter(|(is_set, _)| *is_set) {
        ctx.notice(&at.field(field), "has no effect");
    }
}

/// An enumeration's value, which must be one of those that are known.
pub(super) fn enumeration<E: TryFrom<i32>>(value: i32, at: &At<'_>) -> Result<E, DecodeError> {
    E::try_from(value).map_err(|_| at.refuse(format!("has the unknown value {value}")))
}

/// A duration that is not negative.
pub(super) fn duration(
    value: Option<&prost_types::Duration>,
    at: &At<'_>,
) -> Result<Option<Duration>, DecodeError> {
    let Some(value) = value else { return Ok(None) };
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if seconds <= MAX_SECONDS && nanos < 1_000_000_000 => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(at.refuse("is negative or too long for a duration")),
    }
}

/// A duration of which 0 means that there is no limit.
pub(super) fn limit(
    value: Option<&prost_types::Duration>,
    at: &At<'_>,
) -> Result<Option<Duration>, DecodeError> {
    Ok(duration(value, at)?.filter(|duration| !duration.is_zero()))
}

/// A duration above 0.
pub(super) fn positive(
    value: Option<&prost_types::Duration>,
    default: Duration,
    at: &At<'_>,
) -> Result<Duration, DecodeError> {
    match duration(value, at)? {
        Some(Duration::ZERO) => Err(at.refuse("is 0")),
        value => Ok(value.unwrap_or(default)),
    }
}

/// A share of a hundred.
pub(super) fn percent(value: Option<u32>, default: u8, at: &At<'_>) -> Result<u8, DecodeError> {
    match value.map(u8::try_from) {
        None => Ok(default),
        Some(Ok(value)) if value <= 100 => Ok(value),
        Some(_) => Err(at.refuse("is above 100")),
    }
}

/// A TCP or UDP port.
pub(super) fn port(value: u32, at: &At<'_>) -> Result<u16, DecodeError> {
    u16::try_from(value).map_err(|_| at.refuse(format!("{value} is no port")))
}

/// A text that must not be empty.
pub(super) fn need<'a>(text: &'a str, at: &At<'_>) -> Result<&'a str, DecodeError> {
    if text.is_empty() {
        Err(at.refuse("is missing"))
    } else {
        Ok(text)
    }
}
