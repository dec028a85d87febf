//! What goes wrong on the way between the client and its server, in time that only the test lets pass.

use std::cell::RefCell;
use std::time::Duration;

use attache_bootstrap::Secret;
use attache_proto::envoy::config::core::v3::Node;
use attache_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use tokio::sync::watch;
use tokio::time::Instant;

use super::fake::{Call, Server, Welcome, network};
use super::model;
use super::store::{BAD, Store, resource};
use crate::control::xds::leg::{CONNECT_TIMEOUT, FIRST_RESPONSE_TIMEOUT, LIVED, MAX_PAUSE};
use crate::control::xds::subscription::{Request, Response};
use crate::control::xds::{Address, Handle, Resource, ResourceKind, Target, client};
use crate::control::{SourceStatus, WatchState, status_channel};

use ResourceKind::{Cluster, Endpoint, Listener, Route};

/// A client under way, and all that a test sees of it.
struct World {
    server: Server,
    store: Store,
    handle: Handle,
    status: watch::Receiver<SourceStatus>,
}

fn target(token: &str) -> Target {
    let address = |port| Address::Tcp {
        host: "consul".to_owned(),
        port,
    };
    Target {
        addresses: vec![address(1), address(2)],
        tls: None,
        authority: "local_agent".to_owned(),
        token: Some(Secret::new(token)),
        node: Node {
            id: "web-sidecar-proxy".to_owned(),
            ..Node::default()
        },
    }
}

/// Runs a test on a runtime as the client's, whose clock moves only when nobody has anything to do.
fn run<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        let (network, server) = network();
        let store = Store::default();
        let (publisher, status) = status_channel();
        let (handle, client) = client(target("first"), publisher);
        let world = World {
            server,
            store: store.clone(),
            handle,
            status,
        };
        tokio::select! {
            // The test says first what the client is to meet.
            biased;
            done = tokio::time::timeout(Duration::from_secs(7200), test(world)) => done.unwrap(),
            never = client.run_with(network, store) => match never {},
        }
    });
}

impl World {
    /// Accepts a stream and has its first response, of one cluster, acknowledged.
    async fn serves_one_cluster(&mut self) -> Call {
        let mut call = self.server.accept().await;
        greeted(&mut call).await;
        call.respond(&response(Cluster, "1", one_cluster(1)));
        acknowledged(&mut call, Cluster, "1").await;
        call
    }

    /// What kind of failure a watch has.
    fn failing(&self, watch: &str) -> Option<(String, String)> {
        match &self.status.borrow().watches.get(watch)?.state {
            WatchState::Failing { kind, why, .. } => Some((kind.clone(), why.clone())),
            _ => None,
        }
    }

    /// Until the status satisfies a wish.
    async fn until(&mut self, wish: impl Fn(&SourceStatus) -> bool) {
        self.status.wait_for(|status| wish(status)).await.unwrap();
    }

    async fn until_current(&mut self) {
        self.until(|status| matches!(status.watches["ads"].state, WatchState::Current { .. }))
            .await;
    }

    async fn until_failing(&mut self, watch: &str, kind: &str) {
        let is = |state: &WatchState| matches!(state, WatchState::Failing { kind: k, .. } if k == kind);
        self.until(|status| status.watches.get(watch).is_some_and(|w| is(&w.state)))
            .await;
    }
}

fn response(kind: ResourceKind, nonce: &str, resources: Vec<Resource>) -> Response {
    Response {
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed: Vec::new(),
    }
}

/// A request as the model knows it.
fn plain(request: DeltaDiscoveryRequest) -> Request {
    let names = |names: Vec<String>| names.into_iter().map(Into::into).collect();
    let versions = request.initial_resource_versions.into_iter();
    Request {
        kind: ResourceKind::of_type_url(&request.type_url).unwrap(),
        node: request.node.is_some(),
        subscribe: names(request.resource_names_subscribe),
        unsubscribe: names(request.resource_names_unsubscribe),
        initial_versions: versions.map(|(n, v)| (n.into(), v.into())).collect(),
        nonce: Some(request.response_nonce).filter(|nonce| !nonce.is_empty()),
        refusal: request.error_detail.map(|status| status.message),
    }
}

async fn expect(call: &mut Call) -> Request {
    plain(call.request().await.unwrap())
}

/// The first two requests of every stream without resources.
async fn greeted(call: &mut Call) {
    let first = expect(call).await;
    assert!(first.node && first.kind == Cluster);
    assert_eq!(expect(call).await.kind, Listener);
}

async fn acknowledged(call: &mut Call, kind: ResourceKind, nonce: &str) {
    let request = expect(call).await;
    assert_eq!((request.kind, request.nonce.as_deref()), (kind, Some(nonce)));
    assert_eq!(request.refusal, None);
}

fn token(call: &Call) -> &str {
    call.headers["x-consul-token"].to_str().unwrap()
}

fn one_cluster(version: u64) -> Vec<Resource> {
    vec![resource(Cluster, "local_app", version, "")]
}

#[test]
fn a_call_is_grpc_with_the_token_and_the_node() {
    run(async |mut world| {
        let mut call = world.server.accept().await;
        assert_eq!(
            call.path,
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        );
        assert_eq!(call.headers["content-type"], "application/grpc");
        assert_eq!(call.headers["te"], "trailers");
        assert_eq!(token(&call), "first");
        let first = call.request().await.unwrap();
        assert_eq!(first.node.unwrap().id, "web-sidecar-proxy");
    });
}

#[test]
fn a_refused_response_is_told_and_the_next_good_one_heals_it() {
    run(async |mut world| {
        let mut call = world.serves_one_cluster().await;
        let bad = vec![resource(Cluster, "local_app", 2, BAD)];
        call.respond(&response(Cluster, "2", bad));
        let nack = expect(&mut call).await;
        assert_eq!(nack.nonce.as_deref(), Some("2"));
        assert_eq!(
            nack.refusal.as_deref(),
            Some("local_app has a field that is not supported")
        );
        assert_eq!(world.store.versions(Cluster)["local_app"], "1");
        let (kind, why) = world.failing("ads cds").unwrap();
        assert_eq!((&*kind, why), ("refused", nack.refusal.unwrap()));
        call.respond(&response(Cluster, "3", one_cluster(3)));
        acknowledged(&mut call, Cluster, "3").await;
        assert_eq!(world.store.versions(Cluster)["local_app"], "3");
        assert_eq!(world.failing("ads cds"), None);
    });
}

#[test]
fn nonces_that_come_twice_or_are_skipped_stop_nothing() {
    run(async |mut world| {
        let mut call = world.server.accept().await;
        greeted(&mut call).await;
        for nonce in ["00000001", "00000001", "00000009", "00000001"] {
            call.respond(&response(Cluster, nonce, one_cluster(1)));
            acknowledged(&mut call, Cluster, nonce).await;
        }
        assert_eq!(world.store.applied(Cluster), 2);
    });
}

#[test]
fn a_type_that_has_no_answer_holds_up_no_other() {
    run(async |mut world| {
        let mut call = world.server.accept().await;
        greeted(&mut call).await;
        let clusters = vec![resource(Cluster, "api", 1, "eds/api")];
        call.respond(&response(Cluster, "1", clusters));
        assert_eq!(expect(&mut call).await.kind, Endpoint);
        acknowledged(&mut call, Cluster, "1").await;
        // No endpoints, no listeners, no routes, for ten minutes.
        tokio::time::sleep(Duration::from_secs(600)).await;
        call.respond(&response(Cluster, "2", one_cluster(1)));
        acknowledged(&mut call, Cluster, "2").await;
        assert_eq!(world.failing("ads"), None);
        assert_eq!(world.server.seen.len(), 1);
    });
}

#[test]
fn twenty_thousand_endpoints_come_in_one_message() {
    run(async |mut world| {
        let count = 20_000;
        let address = "x".repeat(200);
        let mut call = world.server.accept().await;
        greeted(&mut call).await;
        let names: Vec<String> = (0..count)
            .map(|i| format!("api-{i}.default.dc1.internal"))
            .collect();
        let clusters = names
            .iter()
            .map(|name| resource(Cluster, name, 1, &format!("eds/{name}")));
        call.respond(&response(Cluster, "1", clusters.collect()));
        let asked = expect(&mut call).await;
        assert_eq!((asked.kind, asked.subscribe.len()), (Endpoint, count));
        acknowledged(&mut call, Cluster, "1").await;
        let needs = format!("none/{address}");
        let endpoints: Vec<_> = names.iter().map(|n| resource(Endpoint, n, 1, &needs)).collect();
        call.respond(&response(Endpoint, "2", endpoints));
        acknowledged(&mut call, Endpoint, "2").await;
        assert_eq!(world.store.versions(Endpoint).len(), count);
        // And all of their versions go with the next stream's first requests.
        call.cut();
        let mut call = world.server.accept().await;
        assert_eq!(expect(&mut call).await.initial_versions.len(), count);
        assert_eq!(expect(&mut call).await.initial_versions.len(), count);
    });
}

/// Serves as the model does, until so many messages went either way.
async fn serve(call: &mut Call, server: &RefCell<model::Server>, messages: usize) -> model::End {
    let mut end = model::End::default();
    let mut left = messages;
    while left > 0 {
        let mut sent = false;
        for kind in ResourceKind::ALL {
            let response = server.borrow().send(&mut end, kind);
            if let Some(response) = response.filter(|_| left > 0) {
                call.respond(&response);
                (sent, left) = (true, left - 1);
            }
        }
        if left > 0 && !sent {
            end.take(&expect(call).await);
            left -= 1;
        }
    }
    end
}

#[test]
fn a_stream_that_is_cut_after_any_message_is_taken_up_by_the_next() {
    /// Enough for everything to arrive and be acknowledged.
    const MESSAGES: usize = 12;
    for cut_after in 0..=MESSAGES {
        run(async |mut world| {
            let server = RefCell::new(model::Server::default());
            for (kind, name, needs) in [
                (Cluster, "local_app", ""),
                (Cluster, "api", "eds/api"),
                (Endpoint, "api", ""),
                (Listener, "api", "rds/api"),
                (Route, "api", ""),
            ] {
                server.borrow_mut().put(kind, name, needs);
            }
            let mut call = world.server.accept().await;
            serve(&mut call, &server, cut_after).await;
            // What changes while there is no stream is not lost either.
            server.borrow_mut().remove(Cluster, "local_app");
            server.borrow_mut().put(Endpoint, "api", "");
            if cut_after % 2 == 0 {
                call.cut();
            } else {
                call.end(14, "draining");
            }
            let mut call = world.server.accept().await;
            tokio::select! {
                _ = serve(&mut call, &server, usize::MAX) => {}
                // The clock moves only once both have come to rest.
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            for kind in ResourceKind::ALL {
                let (held, truth) = (world.store.versions(kind), server.borrow().versions(kind));
                assert_eq!(held, truth, "{kind}, cut after {cut_after} messages");
            }
        });
    }
}

#[test]
fn a_new_token_takes_over_once_it_works() {
    run(async |mut world| {
        let mut old = world.serves_one_cluster().await;
        world.handle.replace_token(Some(Secret::new("second")));
        let mut new = world.server.accept().await;
        assert_eq!(token(&new), "second");
        let first = expect(&mut new).await;
        assert_eq!(first.initial_versions["local_app"], "1".into());
        // The first serves on until the second has said something.
        let listeners = vec![resource(Listener, "public", 1, "")];
        old.respond(&response(Listener, "2", listeners));
        acknowledged(&mut old, Listener, "2").await;
        // It changed what is held: the second begins again, with that.
        new.respond(&response(Cluster, "1", one_cluster(2)));
        let mut new = world.server.accept().await;
        assert_eq!(token(&new), "second");
        assert_eq!(expect(&mut new).await.kind, Cluster);
        let listeners = expect(&mut new).await;
        assert_eq!(listeners.initial_versions["public"], "1".into());
        assert_eq!(world.store.versions(Cluster)["local_app"], "1");
        new.respond(&response(Cluster, "1", one_cluster(2)));
        acknowledged(&mut new, Cluster, "1").await;
        old.gone().await;
        assert_eq!(world.store.versions(Cluster)["local_app"], "2");
        assert_eq!(world.failing("ads"), None);
        assert_eq!(world.status.borrow().watches.len(), 1);
    });
}

#[test]
fn a_wrong_new_token_is_told_while_the_old_stream_goes_on() {
    run(async |mut world| {
        let mut old = world.serves_one_cluster().await;
        world.handle.replace_token(Some(Secret::new("wrong")));
        for _ in 0..3 {
            let call = world.server.accept().await;
            assert_eq!(token(&call), "wrong");
            call.end(16, "ACL not found");
        }
        world
            .until_failing("ads with the new token", "unauthenticated")
            .await;
        let (_, why) = world.failing("ads with the new token").unwrap();
        assert!(why.contains("does not know the token (UNAUTHENTICATED): ACL not found"));
        assert!(!why.contains("wrong"));
        old.respond(&response(Cluster, "2", one_cluster(2)));
        acknowledged(&mut old, Cluster, "2").await;
        assert_eq!(world.failing("ads"), None);
        // The right one then.
        world.handle.replace_token(Some(Secret::new("right")));
        let mut new = loop {
            let call = world.server.accept().await;
            if token(&call) == "right" {
                break call;
            }
        };
        greeted(&mut new).await;
        new.respond(&response(Cluster, "1", one_cluster(3)));
        acknowledged(&mut new, Cluster, "1").await;
        old.gone().await;
        assert_eq!(world.failing("ads with the new token"), None);
    });
}

#[test]
fn the_old_stream_may_end_while_the_new_one_begins() {
    run(async |mut world| {
        let old = world.serves_one_cluster().await;
        world.handle.replace_token(Some(Secret::new("second")));
        let mut new = world.server.accept().await;
        greeted(&mut new).await;
        old.end(16, "ACL not found");
        world.until_failing("ads", "unauthenticated").await;
        new.respond(&response(Cluster, "1", one_cluster(2)));
        acknowledged(&mut new, Cluster, "1").await;
        world.until_current().await;
        assert_eq!(world.server.seen.len(), 2);
        assert_eq!(world.store.versions(Cluster)["local_app"], "2");
    });
}

#[test]
fn a_stream_whose_first_response_is_refused_does_not_take_over() {
    run(async |mut world| {
        let mut old = world.serves_one_cluster().await;
        world.handle.replace_token(Some(Secret::new("second")));
        let mut new = world.server.accept().await;
        greeted(&mut new).await;
        new.respond(&response(Cluster, "1", vec![resource(Cluster, "x", 1, BAD)]));
        assert!(expect(&mut new).await.refusal.is_some());
        old.respond(&response(Cluster, "2", one_cluster(2)));
        acknowledged(&mut old, Cluster, "2").await;
        assert_eq!(world.store.versions(Cluster)["local_app"], "2");
    });
}

#[test]
fn a_token_that_is_wrong_from_the_start_is_told_and_tried_ever_more_seldom() {
    run(async |mut world| {
        for _ in 0..12 {
            let call = world.server.accept().await;
            call.end(7, "Permission denied");
        }
        let (kind, why) = world.failing("ads").unwrap();
        assert_eq!(kind, "permission_denied");
        assert!(
            why.contains("may not read this proxy's configuration (PERMISSION_DENIED): Permission denied")
        );
        let at: Vec<Instant> = world.server.seen.iter().map(|(at, _)| *at).collect();
        let pauses: Vec<Duration> = at.windows(2).map(|two| two[1] - two[0]).collect();
        for (n, pause) in pauses.iter().enumerate() {
            let cap = (Duration::from_millis(500) * 2_u32.pow(n as u32)).min(MAX_PAUSE);
            assert!(
                *pause >= cap / 2 && *pause <= cap + Duration::from_millis(5),
                "{n}: {pause:?}"
            );
        }
        // Another token is a reason to try at once.
        let before = Instant::now();
        world.handle.replace_token(Some(Secret::new("right")));
        let mut call = world.server.accept().await;
        assert_eq!((token(&call), before.elapsed()), ("right", Duration::ZERO));
        greeted(&mut call).await;
        call.respond(&response(Cluster, "1", one_cluster(1)));
        world.until_current().await;
    });
}

#[test]
fn a_stream_that_lived_begins_the_pauses_anew_and_one_that_did_not_does_not() {
    run(async |mut world| {
        let mut pauses = Vec::new();
        for lives in [0, 0, 0, 0, 0, 0, LIVED.as_secs(), 0] {
            let mut call = world.server.accept().await;
            greeted(&mut call).await;
            call.respond(&response(Cluster, "1", vec![]));
            acknowledged(&mut call, Cluster, "1").await;
            tokio::time::sleep(Duration::from_secs(lives)).await;
            let ended = Instant::now();
            call.end(8, "too many xDS streams open");
            world.until_failing("ads", "resource_exhausted").await;
            let next = world.server.accept().await;
            pauses.push(world.server.seen.last().unwrap().0 - ended);
            next.end(8, "too many xDS streams open");
        }
        assert!(pauses[5] > Duration::from_secs(10), "{pauses:?}");
        assert!(pauses[6] <= Duration::from_millis(505), "{pauses:?}");
    });
}

#[test]
fn a_server_that_never_answers_is_told_and_the_next_address_tried() {
    run(async |mut world| {
        let begin = Instant::now();
        world.server.then(Welcome::Ignore, 1);
        world.until_failing("ads", "timeout").await;
        assert!(begin.elapsed() >= FIRST_RESPONSE_TIMEOUT);
        assert!(begin.elapsed() < FIRST_RESPONSE_TIMEOUT + Duration::from_secs(1));
        let (_, why) = world.failing("ads").unwrap();
        assert_eq!(why, "consul:1 takes the connection but has not answered for 30 s");
        let mut call = world.server.accept().await;
        let addresses: Vec<String> = world.server.seen.iter().map(|(_, a)| a.to_string()).collect();
        assert_eq!(addresses, ["consul:1", "consul:2"]);
        greeted(&mut call).await;
        // One that takes requests and says nothing is no better.
        world.until(|s| matches!(&s.watches["ads"].state, WatchState::Failing { why, .. } if why.starts_with("consul:2"))).await;
        let mut call = world.server.accept().await;
        greeted(&mut call).await;
        call.respond(&response(Cluster, "1", one_cluster(1)));
        world.until_current().await;
    });
}

#[test]
fn addresses_that_refuse_or_hang_are_passed_over() {
    run(async |mut world| {
        let begin = Instant::now();
        world.server.then(Welcome::Refuse, 1);
        world.server.then(Welcome::Hang, 1);
        let _call = world.server.accept().await;
        assert!(begin.elapsed() >= CONNECT_TIMEOUT);
        assert!(begin.elapsed() < CONNECT_TIMEOUT + Duration::from_secs(2));
        let (kind, why) = world.failing("ads").unwrap();
        assert_eq!(
            (&*kind, &*why),
            (
                "unreachable",
                "consul:2 cannot be reached: no connection within 5 s"
            )
        );
    });
}

#[test]
fn a_stream_that_is_open_but_dead_is_noticed() {
    run(async |mut world| {
        let call = world.serves_one_cluster().await;
        // An idle one is not: the server answers pings.
        tokio::time::sleep(Duration::from_secs(900)).await;
        assert_eq!(world.failing("ads"), None);
        call.freeze();
        let frozen = Instant::now();
        world.until_failing("ads", "unavailable").await;
        assert!(
            frozen.elapsed() <= Duration::from_secs(46),
            "{:?}",
            frozen.elapsed()
        );
        let (_, why) = world.failing("ads").unwrap();
        assert!(why.ends_with("no sign of life for 45 s"), "{why}");
        assert_eq!(world.store.versions(Cluster)["local_app"], "1");
        let mut call = world.server.accept().await;
        assert_eq!(expect(&mut call).await.initial_versions["local_app"], "1".into());
    });
}

#[test]
fn bytes_that_are_no_response_end_the_stream_and_not_the_client() {
    run(async |mut world| {
        let mut call = world.server.accept().await;
        greeted(&mut call).await;
        call.send(b"\xff\xff\xff");
        world.until_failing("ads", "rubbish").await;
        call.gone().await;
        let mut call = world.server.accept().await;
        greeted(&mut call).await;
        call.respond(&response(Cluster, "1", one_cluster(1)));
        world.until_current().await;
    });
}

#[test]
fn a_server_that_talks_and_does_not_listen_is_given_up() {
    run(async |mut world| {
        world.server.window(10);
        let mut call = world.server.accept().await;
        for nonce in 0..400 {
            call.respond(&response(Cluster, &nonce.to_string(), vec![]));
        }
        world.until_failing("ads", "unavailable").await;
        let (_, why) = world.failing("ads").unwrap();
        assert!(why.ends_with("it does not read what it is sent"), "{why}");
        assert_eq!(world.store.applied(Listener), 0);
    });
}
