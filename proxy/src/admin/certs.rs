//! `/certs`, in the shape of Envoy's `envoy.admin.v3.Certificates`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::listener::ClientCertificate;
use crate::model::secret::CertificateFacts;
use crate::model::{Identity, Roots, Snapshot, Validation};

/// Renders the certificates that listeners and clusters use, each pair of identity and trust bundle
/// once. Keys are never part of it.
pub fn render(snapshot: Option<&Snapshot>) -> Value {
    let mut pairs = Pairs::new();
    if let Some(snapshot) = snapshot {
        for listener in snapshot.listeners.values() {
            for tls in listener.chains().filter_map(|chain| chain.transport.as_ref()) {
                let validation = match &tls.client {
                    ClientCertificate::None => None,
                    ClientCertificate::Optional(v) | ClientCertificate::Required(v) => Some(v),
                };
                insert(&mut pairs, Some(&tls.identity), validation);
            }
        }
        for cluster in snapshot.clusters.values() {
            if let Some(tls) = &cluster.transport {
                insert(&mut pairs, tls.identity.as_ref(), Some(&tls.validation));
            }
        }
    }
    let certificates: Vec<Value> = pairs
        .values()
        .map(|(identity, roots)| {
            let authorities = roots.iter().flat_map(|roots| {
                let path = roots.path.as_deref();
                roots.facts.iter().map(move |facts| certificate(facts, path))
            });
            let leaf = identity.iter();
            let leaf = leaf.map(|identity| certificate(&identity.leaf, identity.path.as_deref()));
            json!({
                "ca_cert": authorities.collect::<Vec<_>>(),
                "cert_chain": leaf.collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "certificates": certificates })
}

/// By address, so that a pair used in several places is listed once.
type Pairs<'a> = BTreeMap<Vec<usize>, (Option<&'a Identity>, Vec<&'a Roots>)>;

fn insert<'a>(
    pairs: &mut Pairs<'a>,
    identity: Option<&'a Arc<Identity>>,
    validation: Option<&'a Validation>,
) {
    let roots: Vec<&Arc<Roots>> = validation.iter().flat_map(|v| v.trust.roots()).collect();
    let mut key = vec![identity.map_or(0, |identity| Arc::as_ptr(identity).addr())];
    key.extend(roots.iter().map(|roots| Arc::as_ptr(roots).addr()));
    let roots = roots.into_iter().map(AsRef::as_ref).collect();
    pairs.insert(key, (identity.map(AsRef::as_ref), roots));
}

fn certificate(facts: &CertificateFacts, path: Option<&str>) -> Value {
    let left = facts
        .not_after
        .duration_since(SystemTime::now())
        .unwrap_or(Duration::ZERO);
    let uris = facts.uris.iter().map(|uri| json!({ "uri": uri }));
    let names = uris.chain(facts.dns_names.iter().map(|name| json!({ "dns": name })));
    json!({
        "path": path.unwrap_or("<inline>"),
        "serial_number": facts.serial,
        "subject_alt_names": names.collect::<Vec<_>>(),
        "days_until_expiration": (left.as_secs() / 86_400).to_string(),
        "valid_from": rfc3339(facts.not_before),
        "expiration_time": rfc3339(facts.not_after),
    })
}

/// RFC 3339 in UTC, to the second.
pub fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time)
        .replace_nanosecond(0)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// RFC 3339 in UTC, to the millisecond, as in Envoy's `/config_dump`.
pub fn rfc3339_millis(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let seconds = rfc3339(time.into());
    let seconds = seconds.strip_suffix('Z').unwrap_or(&seconds);
    format!("{seconds}.{:03}Z", time.millisecond())
}

/// Whole days until the first of the certificates of our own ends; none without any.
pub fn days_until_first_expiry(snapshot: &Snapshot) -> Option<u64> {
    let listeners = snapshot.listeners.values().flat_map(|listener| listener.chains());
    let served = listeners.filter_map(|chain| Some(&chain.transport.as_ref()?.identity));
    let clusters = snapshot.clusters.values();
    let presented = clusters.filter_map(|cluster| cluster.transport.as_ref()?.identity.as_ref());
    let now = SystemTime::now();
    let days = served.chain(presented).map(|identity| {
        let left = identity.leaf.not_after.duration_since(now).unwrap_or_default();
        left.as_secs() / 86_400
    });
    days.min()
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
        let millis = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_437_309_007);
        assert_eq!(rfc3339_millis(millis), "2026-11-23T12:35:09.007Z");
    }
}
