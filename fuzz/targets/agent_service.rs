//! `/v1/agent/service/:id`: whatever an agent answers, the registration is whole or refused by field.

#![no_main]

use attache::control::consul::registration;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Ok(registration) = attache_fuzz::decode(body, registration::decode) else {
        return;
    };
    assert!(!registration.id.is_empty());
    for name in [
        &registration.namespace,
        &registration.partition,
        &registration.local_socket,
    ] {
        assert_ne!(name.as_deref(), Some(""), "an empty name counts as none");
    }
    for upstream in &registration.upstreams {
        assert!(!upstream.destination.is_empty() && !upstream.kind.is_empty());
        for name in [
            &upstream.datacenter,
            &upstream.namespace,
            &upstream.partition,
            &upstream.peer,
            &upstream.bind_socket,
        ] {
            assert_ne!(name.as_deref(), Some(""), "an empty name counts as none");
        }
    }
});
