//! The bootstrap's `stats_config`, `stats_sinks` and `stats_flush_interval`.
//!
//! Pure: protobuf in, the plain configuration of `telemetry` out.

use std::time::Duration;

use attache_proto::TypeUrl;
use attache_proto::envoy::config::bootstrap::v3::Bootstrap as Message;
use attache_proto::envoy::config::core::v3::{Address, address, socket_address};
use attache_proto::envoy::config::metrics::v3::{
    DogStatsdSink, StatsSink, StatsdSink, TagSpecifier as TagMessage, dog_statsd_sink, stats_sink,
    statsd_sink, tag_specifier,
};
use prost::Message as _;

use super::bootstrap::{BootstrapError, interval, refused, socket};
use crate::telemetry::metrics::StatsConfig;
use crate::telemetry::metrics::render::statsd::Dialect;
use crate::telemetry::metrics::tags::{TagSpecifier, TagValue};
use crate::telemetry::sink::{DATAGRAM, FLUSH_INTERVAL, PREFIX, SinkAddress, SinkConfig};

/// How statistics are tagged, and to whom they are pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// `stats_config`.
    pub config: StatsConfig,
    /// `stats_sinks`.
    pub sinks: Vec<SinkConfig>,
    /// `stats_flush_interval`.
    pub flush_interval: Duration,
}

/// Reads what a bootstrap says of statistics; what is not carried out is told in `notes`.
///
/// # Errors
/// Names the field.
pub(super) fn decode(message: &Message, notes: &mut Vec<String>) -> Result<Statistics, BootstrapError> {
    let mut config = StatsConfig::default();
    if let Some(given) = &message.stats_config {
        config.use_all_default_tags = given.use_all_default_tags.unwrap_or(true);
        config.stats_tags = given.stats_tags.iter().map(tag).collect();
        if given.stats_matcher.is_some() {
            notes.push("stats_config.stats_matcher does nothing here: every statistic is kept".to_owned());
        }
        if !given.histogram_bucket_settings.is_empty() {
            let note =
                "stats_config.histogram_bucket_settings does nothing here: buckets are Envoy's default";
            notes.push(note.to_owned());
        }
    }
    let mut sinks = Vec::new();
    for (at, sink) in message.stats_sinks.iter().enumerate() {
        sinks.extend(one_sink(sink, &format!("stats_sinks[{at}]"), notes)?);
    }
    let flush_interval = interval(message.stats_flush_interval.as_ref(), "stats_flush_interval")?;
    Ok(Statistics {
        config,
        sinks,
        flush_interval: flush_interval
            .filter(|every| !every.is_zero())
            .unwrap_or(FLUSH_INTERVAL),
    })
}

fn tag(tag: &TagMessage) -> TagSpecifier {
    TagSpecifier {
        tag_name: tag.tag_name.clone(),
        value: match &tag.tag_value {
            Some(tag_specifier::TagValue::Regex(regex)) => TagValue::Regex(regex.clone()),
            Some(tag_specifier::TagValue::FixedValue(value)) => TagValue::Fixed(value.clone()),
            None => TagValue::WellKnown,
        },
    }
}

/// `None` for a sink that is not carried out, which statistics can do without.
fn one_sink(
    sink: &StatsSink,
    field: &str,
    notes: &mut Vec<String>,
) -> Result<Option<SinkConfig>, BootstrapError> {
    let Some(stats_sink::ConfigType::TypedConfig(any)) = &sink.config_type else {
        notes.push(format!(
            "{field} ({}) has no typed_config and is left out",
            sink.name
        ));
        return Ok(None);
    };
    let broken = |error: prost::DecodeError| refused(format!("{field}.typed_config"), error.to_string());
    let (dialect, address, prefix, datagram) = match any.type_url.as_str() {
        StatsdSink::TYPE_URL => {
            let statsd = StatsdSink::decode(any.value.as_slice()).map_err(broken)?;
            match statsd.statsd_specifier {
                Some(statsd_sink::StatsdSpecifier::Address(address)) => {
                    (Dialect::Statsd, address, statsd.prefix, None)
                }
                _ => {
                    notes.push(format!("{field}: statsd over a TCP cluster is not carried out"));
                    return Ok(None);
                }
            }
        }
        DogStatsdSink::TYPE_URL => {
            let dog = DogStatsdSink::decode(any.value.as_slice()).map_err(broken)?;
            let Some(dog_statsd_sink::DogStatsdSpecifier::Address(address)) = dog.dog_statsd_specifier else {
                return Err(refused(format!("{field}.typed_config.address"), "is missing"));
            };
            let datagram = dog.max_bytes_per_datagram;
            (Dialect::DogStatsd, address, dog.prefix, datagram)
        }
        other => {
            notes.push(format!("{field}: a sink of the type {other} is not carried out"));
            return Ok(None);
        }
    };
    let datagram = datagram.and_then(|bytes| usize::try_from(bytes).ok());
    Ok(Some(SinkConfig {
        dialect,
        address: sink_address(&address, &format!("{field}.typed_config.address"))?,
        prefix: if prefix.is_empty() {
            PREFIX.to_owned()
        } else {
            prefix
        },
        datagram: datagram.filter(|bytes| *bytes > 0).unwrap_or(DATAGRAM),
    }))
}

fn sink_address(address: &Address, field: &str) -> Result<SinkAddress, BootstrapError> {
    match &address.address {
        Some(address::Address::Pipe(pipe)) => Ok(SinkAddress::Unix(pipe.path.clone().into())),
        Some(address::Address::SocketAddress(socket_address))
            if socket_address.protocol == socket_address::Protocol::Tcp as i32
                && socket_address.port_specifier.is_none() =>
        {
            Err(refused(
                format!("{field}.socket_address.port_value"),
                "is missing",
            ))
        }
        _ => socket(address, field).map(SinkAddress::Udp),
    }
}
