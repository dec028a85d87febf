//! SPIFFE IDs: parsing and writing undo each other, and no two names share a URI.
//!
//! One line is a URI. Five lines are a trust domain and a service's partition, namespace, datacenter
//! and name.

#![no_main]

use attache::model::SpiffeId;
use attache::model::spiffe::{ServiceId, SpiffeError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let lines: Vec<&str> = text.split('\n').collect();
    if let [trust_domain, partition, namespace, datacenter, service, ..] = *lines {
        let parts = ServiceId {
            partition: partition.to_owned(),
            namespace: namespace.to_owned(),
            datacenter: datacenter.to_owned(),
            service: service.to_owned(),
        };
        service_to_uri_and_back(trust_domain, parts);
    } else {
        uri_and_back(text.strip_suffix('\n').unwrap_or(text));
    }
});

fn uri_and_back(uri: &str) {
    let Ok(id) = SpiffeId::parse(uri) else {
        return;
    };
    assert!(!uri.ends_with('/'), "an empty segment");
    assert_eq!(id.as_str(), uri, "a URI is kept as it was written");
    assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
    let domain = format!("spiffe://{}", id.trust_domain());
    assert!(uri == domain || uri.starts_with(&format!("{domain}/")));
    assert_eq!(
        SpiffeId::parse(&domain).map(|id| id.trust_domain().to_owned()),
        Ok(id.trust_domain().to_owned())
    );
    if let Some(service) = id.service() {
        match SpiffeId::for_service(id.trust_domain(), service) {
            Ok(written) => {
                assert_eq!(written.service(), Some(service));
                assert_eq!(written.trust_domain(), id.trust_domain());
            }
            // An escape is longer than what it stands for.
            Err(error) => assert_eq!(error, SpiffeError::TooLong),
        }
    }
}

fn service_to_uri_and_back(trust_domain: &str, mut parts: ServiceId) {
    let Ok(id) = SpiffeId::for_service(trust_domain, &parts) else {
        return;
    };
    if parts.partition.is_empty() {
        parts.partition = "default".to_owned();
    }
    assert_eq!(id.trust_domain(), trust_domain);
    assert_eq!(id.service(), Some(&parts));
    assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
}
