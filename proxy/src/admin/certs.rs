//! `/certs`, in the shape of Envoy's `envoy.admin.v3.Certificates`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::model::secret::CertificateFacts;
use crate::model::{Identity, Snapshot, TrustBundle};

/// Renders the certificates that listeners and clusters use, each pair of identity and trust bundle
/// once. Keys are never part of it.
pub fn render(snapshot: Option<&Snapshot>) -> Value {
    let mut pairs: BTreeMap<(*const Identity, *const TrustBundle), (&Identity, &TrustBundle)> =
        BTreeMap::new();
    if let Some(snapshot) = snapshot {
        for listener in snapshot.listeners.values() {
            if let Some(tls) = &listener.filter_chain.transport {
                pairs.insert(
                    (&raw const *tls.identity, &raw const *tls.trust),
                    (&tls.identity, &tls.trust),
                );
            }
        }
        for cluster in snapshot.clusters.values() {
            if let Some(tls) = &cluster.transport {
                pairs.insert(
                    (&raw const *tls.identity, &raw const *tls.trust),
                    (&tls.identity, &tls.trust),
                );
            }
        }
    }
    let certificates: Vec<Value> = pairs
        .values()
        .map(|(identity, trust)| {
            json!({
                "ca_cert": trust.facts.iter().map(certificate).collect::<Vec<_>>(),
                "cert_chain": [certificate(&identity.leaf)],
            })
        })
        .collect();
    json!({ "certificates": certificates })
}

fn certificate(facts: &CertificateFacts) -> Value {
    let left = facts
        .not_after
        .duration_since(SystemTime::now())
        .unwrap_or(Duration::ZERO);
    json!({
        "path": "<inline>",
        "serial_number": facts.serial,
        "subject_alt_names": facts.uris.iter().map(|uri| json!({ "uri": uri })).collect::<Vec<_>>(),
        "days_until_expiration": (left.as_secs() / 86_400).to_string(),
        "valid_from": rfc3339(facts.not_before),
        "expiration_time": rfc3339(facts.not_after),
    })
}

/// RFC 3339 in UTC, to the second, for times after 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The proleptic Gregorian date of a day since 1970-01-01, in eras of 400 years from 0000-03-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_437_309), "2026-11-23T12:35:09Z");
    }
}
