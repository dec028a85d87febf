//! What Envoy, Consul and Nomad really wrote goes to the wire and comes back as it was. The files in
//! `recorded/` are answers of a lab mesh (Envoy 1.40 under Consul); of the long lists `node.extensions` only
//! the first three are kept.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by it")]

use attache_proto::{TypeUrl, envoy, json, unknown_fields};
use prost::Message;
use serde_json::Value;
use std::{fs, path::PathBuf};

/// Names and contents of the recorded files that end so.
fn recorded(suffix: &str) -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let chosen = names.filter(|path| path.to_string_lossy().ends_with(suffix));
    let read = chosen.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (path.display().to_string(), serde_json::from_str(&text).unwrap())
    });
    read.collect()
}

fn to_wire(name: &str, type_name: &str, value: &Value) -> Vec<u8> {
    let mut diagnostics = json::Diagnostics::default();
    let bytes = json::to_wire(type_name, value, &mut diagnostics).expect(name);
    assert_eq!(diagnostics.warnings, vec![], "{name}");
    assert_eq!(unknown_fields(type_name, &bytes).expect(name), vec![]);
    bytes
}

/// Compared as text: also the order of the keys is Envoy's.
fn round_trip(suffix: &str, type_name: &str, options: json::Options, count: usize) {
    let files = recorded(suffix);
    assert_eq!(files.len(), count);
    for (name, value) in files {
        let bytes = to_wire(&name, type_name, &value);
        let back = json::from_wire(type_name, &bytes, options).expect(&name);
        assert_eq!(back.to_string(), value.to_string(), "{name}");
    }
}

#[test]
fn config_dumps_come_back_as_they_were() {
    let options = json::Options::default();
    round_trip("_config_dump.json", "envoy.admin.v3.ConfigDump", options, 10);
}

#[test]
fn redacting_what_envoy_redacted_changes_nothing() {
    let options = json::Options {
        redact: true,
        ..json::Options::default()
    };
    let secrets: usize = recorded("_config_dump.json")
        .iter()
        .map(|(_, value)| value.to_string().matches("[redacted]").count())
        .sum();
    assert!(secrets > 10, "the recordings have private keys: {secrets}");
    // An empty token in `initial_metadata` has no value to redact.
    round_trip("_config_dump.json", "envoy.admin.v3.ConfigDump", options, 10);
}

#[test]
fn other_admin_answers_come_back_as_they_were() {
    let options = json::Options::default();
    round_trip("_certs.json", "envoy.admin.v3.Certificates", options, 1);
    round_trip("_clusters.json", "envoy.admin.v3.Clusters", options, 1);
    round_trip("_listeners.json", "envoy.admin.v3.Listeners", options, 1);
    let options = json::Options {
        defaults: true,
        ..options
    };
    round_trip("_server_info.json", "envoy.admin.v3.ServerInfo", options, 1);
}

#[test]
fn bootstraps_decode_into_the_structs() {
    type Bootstrap = envoy::config::bootstrap::v3::Bootstrap;
    let files = recorded("_bootstrap.json");
    assert_eq!(files.len(), 3);
    for (name, value) in files {
        let bytes = to_wire(&name, Bootstrap::TYPE_NAME, &value);
        let bootstrap = Bootstrap::decode(bytes.as_slice()).expect(&name);
        let node = bootstrap.node.clone().expect(&name);
        assert_eq!(value["node"]["id"], node.id.as_str());
        // Consul writes this list as one object.
        let ads = bootstrap.dynamic_resources.clone().unwrap().ads_config;
        assert_eq!(ads.unwrap().grpc_services.len(), 1, "{name}");
        let again = bootstrap.encode_to_vec();
        let options = json::Options::default();
        assert_eq!(
            json::from_wire(Bootstrap::TYPE_NAME, &again, options).expect(&name),
            json::from_wire(Bootstrap::TYPE_NAME, &bytes, options).expect(&name),
        );
    }
}

#[test]
fn dumped_resources_decode_into_the_structs() {
    type Listener = envoy::config::listener::v3::Listener;
    type Cluster = envoy::config::cluster::v3::Cluster;
    let (mut listeners, mut clusters) = (0, 0);
    for (name, value) in recorded("_config_dump.json") {
        for config in value["configs"].as_array().unwrap() {
            for dynamic in config["dynamic_listeners"].as_array().into_iter().flatten() {
                let json = &dynamic["active_state"]["listener"];
                let any = to_wire(&name, "google.protobuf.Any", json);
                let any = prost_types::Any::decode(any.as_slice()).unwrap();
                let listener: Listener = any.to_msg().expect(&name);
                assert_eq!(json["name"], listener.name.as_str());
                assert!(format!("{listener:?}").contains(&listener.name));
                listeners += 1;
            }
            for dynamic in config["dynamic_active_clusters"].as_array().into_iter().flatten() {
                let json = &dynamic["cluster"];
                let any = to_wire(&name, "google.protobuf.Any", json);
                let any = prost_types::Any::decode(any.as_slice()).unwrap();
                let cluster: Cluster = any.to_msg().expect(&name);
                assert_eq!(json["name"], cluster.name.as_str());
                clusters += 1;
            }
        }
    }
    assert_eq!((listeners, clusters), (18, 19));
}
