//! xDS resources: JSON with `@type` as in a bootstrap file or a dump, else a letter and a message's bytes.

#![no_main]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use attache::control::xds::decode::{
    Context, DecodeError, Files, Shared, Why, cluster, endpoint, listener, secret,
};
use attache::model::Identity;
use attache_proto::json::{self, Diagnostics};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use zeroize::Zeroizing;

/// The types, each with the letter that stands for it before a message's bytes.
const TYPES: [(u8, &str); 4] = [
    (b'l', "envoy.config.listener.v3.Listener"),
    (b'c', "envoy.config.cluster.v3.Cluster"),
    (b'e', "envoy.config.endpoint.v3.ClusterLoadAssignment"),
    (b's', "envoy.extensions.transport_sockets.tls.v3.Secret"),
];

fuzz_target!(|input: &[u8]| {
    let Some((letter, bytes)) = message(input) else {
        return;
    };
    match letter {
        b'l' => twice(&bytes, listener::decode_bytes),
        b'c' => twice(&bytes, cluster::decode_bytes),
        b'e' => twice(&bytes, endpoint::decode_bytes),
        _ => twice(&bytes, secret::decode_bytes),
    }
});

fn message(input: &[u8]) -> Option<(u8, Vec<u8>)> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(input) else {
        let (letter, bytes) = input.split_first()?;
        return TYPES
            .iter()
            .any(|(known, _)| known == letter)
            .then(|| (*letter, bytes.to_vec()));
    };
    let url = object.shift_remove("@type")?;
    let (letter, name) = TYPES
        .into_iter()
        .find(|(_, name)| url.as_str().is_some_and(|url| url.ends_with(name)))?;
    let bytes = json::to_wire(name, &Value::Object(object), &mut Diagnostics::default()).ok()?;
    Some((letter, bytes))
}

/// The same bytes read the same, and what is refused says what and why, but no key.
fn twice<T: PartialEq + Debug>(bytes: &[u8], decode: fn(&[u8], &mut Context<'_>) -> Result<T, DecodeError>) {
    // No file is ever read: names of them are the input's.
    let (files, secrets, mut shared) = (Nothing, BTreeMap::new(), Shared::default());
    let check: fn(&Identity) -> Result<(), String> = |_| Ok(());
    let mut pass = || {
        let mut context = Context::new(&files, &secrets, check, &mut shared);
        let decoded = decode(bytes, &mut context);
        (decoded, context.notices)
    };
    let first = pass();
    assert_eq!(first, pass());
    if let Err(error) = &first.0 {
        assert!(!error.resource.is_empty());
        assert!(!matches!(&error.why, Why::Refused(why) if why.is_empty()));
        assert!(!error.to_string().contains("PRIVATE KEY-----\n"), "{error}");
    }
}

/// A file system with nothing in it.
struct Nothing;

impl Files for Nothing {
    fn read(&self, _: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
        Err("cannot be read: there are no files".to_owned())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}
