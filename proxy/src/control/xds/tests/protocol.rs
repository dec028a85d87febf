//! The rules of the protocol, one by one.

use super::store::{BAD, Store, resource};
use crate::control::xds::subscription::{Outcome, Request, Response, Stream, Subscriptions};
use crate::control::xds::{Resource, ResourceKind};

use ResourceKind::{Cluster, Endpoint, Listener, Route};

fn response(kind: ResourceKind, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> Response {
    Response {
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed: removed.iter().map(|&name| name.to_owned()).collect(),
    }
}

#[derive(Default)]
struct Client {
    subscriptions: Subscriptions,
    stream: Stream,
    store: Store,
}

impl Client {
    fn open(&mut self) -> Vec<Request> {
        let (stream, requests) = self.subscriptions.open();
        self.stream = stream;
        requests
    }

    fn receive(&mut self, response: Response) -> (Outcome, Vec<Request>) {
        let (stream, store) = (&mut self.stream, &mut self.store);
        self.subscriptions.receive(stream, response, store)
    }

    /// Opened, with one cluster that needs endpoints, which are there.
    fn settled() -> Self {
        let mut client = Self::default();
        client.open();
        client.receive(response(
            Cluster,
            "1",
            vec![resource(Cluster, "api", 1, "eds/api")],
            &[],
        ));
        client.receive(response(
            Endpoint,
            "2",
            vec![resource(Endpoint, "api", 7, "")],
            &[],
        ));
        client
    }
}

/// A request in short: `[node] kind +subscribed -unsubscribed =initial ack|nack nonce`.
fn short(request: &Request) -> String {
    let mut words = vec![request.kind.to_string()];
    if request.node {
        words.insert(0, "node".to_owned());
    }
    words.extend(request.subscribe.iter().map(|name| format!("+{name}")));
    words.extend(request.unsubscribe.iter().map(|name| format!("-{name}")));
    let initial = request.initial_versions.iter();
    words.extend(initial.map(|(name, version)| format!("={name}@{version}")));
    if let Some(nonce) = &request.nonce {
        let verb = if request.refusal.is_some() { "nack" } else { "ack" };
        words.push(format!("{verb} {nonce}"));
    }
    words.join(" ")
}

fn all(requests: &[Request]) -> Vec<String> {
    requests.iter().map(short).collect()
}

#[test]
fn a_stream_begins_with_the_node_and_asks_for_no_kind_without_names() {
    assert_eq!(all(&Client::default().open()), ["node cds", "lds"]);
}

#[test]
fn endpoints_are_asked_for_before_their_cluster_is_acknowledged() {
    let mut client = Client::default();
    client.open();
    let clusters = vec![
        resource(Cluster, "api", 1, "eds/api"),
        resource(Cluster, "local_app", 1, ""),
    ];
    let (outcome, requests) = client.receive(response(Cluster, "1", clusters, &[]));
    assert_eq!(all(&requests), ["eds +api", "cds ack 1"]);
    assert_eq!(
        outcome,
        Outcome::Accepted {
            kind: Cluster,
            changed: 2,
            removed: 0
        }
    );
}

#[test]
fn an_empty_response_is_acknowledged_and_told_to_the_store() {
    let mut client = Client::default();
    client.open();
    let (_, requests) = client.receive(response(Listener, "1", vec![], &[]));
    assert_eq!(all(&requests), ["lds ack 1"]);
    assert_eq!(client.store.applied(Listener), 1);
}

#[test]
fn a_name_that_nobody_wants_any_more_is_given_up_and_its_late_answer_dropped() {
    let mut client = Client::settled();
    let (_, requests) = client.receive(response(Cluster, "3", vec![], &["api"]));
    assert_eq!(all(&requests), ["eds -api", "cds ack 3"]);
    let late = vec![resource(Endpoint, "api", 8, "")];
    let (outcome, requests) = client.receive(response(Endpoint, "4", late, &[]));
    assert_eq!(all(&requests), ["eds ack 4"]);
    assert!(matches!(outcome, Outcome::Accepted { changed: 0, .. }));
    assert!(client.store.versions(Endpoint).is_empty());
    // Back again: asked for anew on the same stream, without a version that is no longer held.
    let again = vec![resource(Cluster, "api", 9, "eds/api")];
    let (_, requests) = client.receive(response(Cluster, "5", again, &[]));
    assert_eq!(all(&requests), ["eds +api", "cds ack 5"]);
    assert_eq!(all(&client.open()), ["node cds =api@9", "eds +api", "lds"]);
}

#[test]
fn a_refusal_names_its_reason_stands_alone_and_leaves_what_is_held() {
    let mut client = Client::settled();
    let both = vec![
        resource(Cluster, "api", 2, "eds/other"),
        resource(Cluster, "web", 2, BAD),
    ];
    let (outcome, requests) = client.receive(response(Cluster, "3", both, &[]));
    assert_eq!(all(&requests), ["cds nack 3"]);
    let reason = requests[0].refusal.as_deref();
    assert_eq!(reason, Some("web has a field that is not supported"));
    assert!(matches!(outcome, Outcome::Refused { kind: Cluster, .. }));
    assert_eq!(client.store.versions(Cluster)["api"], "1");
    assert_eq!(all(&client.open()), ["node cds =api@1", "eds +api =api@7", "lds"]);
}

#[test]
fn versions_go_with_the_first_request_of_a_kind_on_a_stream_only() {
    let mut client = Client::settled();
    assert_eq!(all(&client.open()), ["node cds =api@1", "eds +api =api@7", "lds"]);
    let more = vec![resource(Cluster, "web", 1, "eds/web")];
    let (_, requests) = client.receive(response(Cluster, "1", more, &[]));
    assert_eq!(all(&requests), ["eds +web", "cds ack 1"]);
}

#[test]
fn a_replayed_nonce_is_answered_as_before_and_not_applied() {
    let mut client = Client::settled();
    let newer = vec![resource(Cluster, "api", 2, "eds/api")];
    client.receive(response(Cluster, "3", newer, &[]));
    let older = vec![resource(Cluster, "api", 1, "eds/api")];
    let (outcome, requests) = client.receive(response(Cluster, "1", older, &[]));
    assert_eq!(outcome, Outcome::Replayed { kind: Cluster });
    assert_eq!(all(&requests), ["cds ack 1"]);
    assert_eq!(client.store.versions(Cluster)["api"], "2");
    client.receive(response(Cluster, "4", vec![resource(Cluster, "x", 1, BAD)], &[]));
    let (_, requests) = client.receive(response(Cluster, "4", vec![], &[]));
    assert_eq!(all(&requests), ["cds nack 4"]);
}

#[test]
fn a_skipped_nonce_is_a_nonce() {
    let mut client = Client::settled();
    let newer = vec![resource(Cluster, "api", 2, "eds/api")];
    let (_, requests) = client.receive(response(Cluster, "00ffffff", newer, &[]));
    assert_eq!(all(&requests), ["cds ack 00ffffff"]);
    assert_eq!(client.store.versions(Cluster)["api"], "2");
}

#[test]
fn the_same_nonce_on_another_stream_is_another_response() {
    let mut client = Client::settled();
    client.open();
    let newer = vec![resource(Cluster, "api", 2, "eds/api")];
    let (outcome, _) = client.receive(response(Cluster, "1", newer, &[]));
    assert!(matches!(outcome, Outcome::Accepted { .. }));
}

#[test]
fn what_was_not_asked_for_has_no_answer_and_no_effect() {
    let mut client = Client::default();
    client.open();
    let mut foreign = response(Route, "1", vec![resource(Route, "web", 1, "")], &[]);
    assert_eq!(client.receive(foreign.clone()), (Outcome::Unasked, vec![]));
    foreign.type_url = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration".to_owned();
    assert_eq!(client.receive(foreign), (Outcome::Unasked, vec![]));
    assert_eq!(client.store.applied(Route), 0);
}

#[test]
fn a_response_that_contradicts_itself_is_refused_before_the_store_sees_it() {
    let refusal = |response| {
        let mut client = Client::settled();
        let (outcome, requests) = client.receive(response);
        assert_eq!(client.store.applied(Cluster), 1);
        assert!(matches!(outcome, Outcome::Refused { .. }));
        requests[0].refusal.clone().unwrap()
    };
    let one = |version| resource(Cluster, "api", version, "");
    let twice = response(Cluster, "3", vec![one(2), one(3)], &[]);
    assert_eq!(refusal(twice), "cds: the resource api is in the response twice");
    let both = response(Cluster, "3", vec![one(2)], &["api"]);
    assert_eq!(refusal(both), "cds: the resource api is in the response twice");
    let mut other = one(2);
    other.type_url = Listener.type_url().to_owned();
    let said = refusal(response(Cluster, "3", vec![other], &[]));
    assert!(said.contains("api is of the type") && said.contains("Listener"));
}

#[test]
fn a_stream_beside_is_outdated_once_the_other_changed_something() {
    let mut client = Client::settled();
    let (beside, _) = client.subscriptions.open();
    assert!(!client.subscriptions.is_outdated(&beside));
    client.receive(response(Cluster, "3", vec![], &["api"]));
    assert!(client.subscriptions.is_outdated(&beside));
    assert!(!client.subscriptions.is_outdated(&client.stream));
}
