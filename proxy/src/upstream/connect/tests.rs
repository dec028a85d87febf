//! Searches for an endpoint, over real loopback sockets and a clock that jumps.

use std::cell::RefCell;
use std::future::Future;

use tokio::time::sleep;

use super::*;
use crate::limit::Limits;
use crate::model::cluster::{CircuitBreakers, Dns, DnsFamily, OutlierDetection};
use crate::model::listener::{
    Direction, FilterChain, Listener, ListenerFilters, TcpProxy, Terminal, TlsParams,
};
use crate::model::{Cluster, ClusterLoadAssignment, Roots, Snapshot, Trust, UpstreamTls, Validation};
use crate::tls::ConfigCache;

/// A worker's clusters, changed as a source would.
#[derive(Clone)]
struct Bed(Rc<(ClusterManager, RefCell<Snapshot>)>);

/// A port of the loopback that is ours and accepts (`Some` kernel queue) or refuses.
struct Port(
    SocketAddr,
    #[expect(dead_code, reason = "held open")] Option<std::net::TcpListener>,
    Option<socket2::Socket>,
);

fn accepts() -> Port {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Port(socket.local_addr().unwrap(), Some(socket), None)
}

fn refuses() -> Port {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    Port(
        socket.local_addr().unwrap().as_socket().unwrap(),
        None,
        Some(socket),
    )
}

impl Bed {
    fn new(clusters: Vec<Cluster>) -> Self {
        let bed = Self(Rc::new((
            ClusterManager::new(Limits::default(), true),
            RefCell::default(),
        )));
        bed.change(|snapshot| {
            for cluster in clusters {
                snapshot
                    .clusters
                    .insert(Arc::clone(&cluster.name), Arc::new(cluster));
            }
        });
        bed
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.0.1.borrow_mut());
        self.0.0.apply(&self.0.1.borrow(), &mut ConfigCache::default());
    }

    /// All healthy, of priority 0.
    fn endpoints(&self, cluster: &str, ports: &[&Port]) {
        let all: Vec<_> = ports.iter().map(|port| (*port, true, 0)).collect();
        self.assign(cluster, &all);
    }

    fn assign(&self, cluster: &str, endpoints: &[(&Port, bool, u32)]) {
        let endpoint = |(port, healthy, priority): &(&Port, bool, u32)| Endpoint {
            address: Target::Address(Address::Socket(port.0)),
            weight: 1,
            healthy: *healthy,
            priority: *priority,
            hostname: None,
        };
        let assignment = Arc::new(ClusterLoadAssignment {
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..ClusterLoadAssignment::default()
        });
        self.change(|snapshot| {
            snapshot.endpoints.insert(cluster.into(), assignment);
        });
    }

    async fn connect(&self, cluster: &str, context: LoadBalancerContext) -> Result<Connected, ConnectError> {
        connect(&self.0.0, &cluster.into(), context).await
    }

    /// Where it got to or why not, and after how many whole seconds.
    async fn outcome(&self, cluster: &str) -> (Result<String, String>, u64) {
        let began = Instant::now();
        let connected = self.connect(cluster, LoadBalancerContext::default()).await;
        let outcome = connected
            .map(|connected| connected.endpoint)
            .map_err(|error| format!("{} {error}", error.flag()));
        (outcome, began.elapsed().as_secs())
    }

    async fn reaches(&self, cluster: &str, port: &Port) {
        assert_eq!(self.outcome(cluster).await.0, Ok(port.0.to_string()));
    }

    async fn fails(&self, cluster: &str, seconds: u64, words: &[&str]) {
        let (outcome, after) = self.outcome(cluster).await;
        let error = outcome.unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(after, seconds, "{error}");
    }

    fn dialled(&self, cluster: &str) -> Vec<String> {
        let cluster = self.0.0.get(cluster).unwrap();
        let set = cluster.endpoints();
        let last = set
            .endpoints()
            .filter(|endpoint| endpoint.is_last(Instant::now()));
        last.map(|endpoint| endpoint.address.to_string()).collect()
    }
}

fn plain(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        panic_threshold: 0,
        ..Cluster::default()
    }
}

/// A cluster as of the mesh. No endpoint here answers its handshake.
fn mesh(name: &str) -> Cluster {
    let authority = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let roots = Roots::from_pem([authority.cert.pem().as_str()]).unwrap();
    Cluster {
        transport: Some(Arc::new(UpstreamTls {
            identity: None,
            validation: Validation {
                trust: Trust::Roots(Arc::new(roots)),
                names: vec![],
            },
            sni: None,
            alpn: vec![],
            params: TlsParams::default(),
        })),
        ..plain(name)
    }
}

fn aggregate(name: &str, members: &[&str]) -> Cluster {
    Cluster {
        kind: ClusterKind::Aggregate(members.iter().map(|member| (*member).into()).collect()),
        ..plain(name)
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default())
        .unwrap()
        .block_on(test);
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn how_long_is_waited() {
    run(async {
        // Ten hours after the runtime's start, so that there is a past.
        sleep(36_000 * SECOND).await;
        let now = Instant::now();
        let tried = |may_leave, seconds: Option<u32>| Missing::Tried {
            may_leave,
            starts_until: seconds.map(|seconds| now + seconds * SECOND),
        };
        let lost = |seconds| Missing::Lost(now - seconds * SECOND);
        for (missing, expected) in [
            (Missing::Never, None),
            (Missing::Unknown("".into()), Some(5)),
            (tried(false, None), None),
            (tried(false, Some(4)), None),
            (tried(true, None), Some(2)),
            (tried(true, Some(1)), Some(2)),
            (tried(true, Some(4)), Some(4)),
            (lost(0), Some(15)),
            (lost(4), Some(11)),
            (lost(10), Some(5)),
            (lost(15), Some(5)),
            (lost(16), None),
        ] {
            let deadline = missing.deadline(now, 5 * SECOND);
            assert_eq!(deadline.map(|at| (at - now).as_secs()), expected, "{missing:?}");
        }
        // Lost while it was tried.
        let later = Missing::Lost(now + 6 * SECOND).deadline(now, 5 * SECOND);
        assert_eq!(later.map(|at| (at - now).as_secs()), Some(21));
    });
}

#[test]
fn a_refused_connection_goes_elsewhere_and_the_next_ones_do_not_come_back_soon() {
    run(async {
        let (dead, alive) = (refuses(), accepts());
        let bed = Bed::new(vec![plain("c")]);
        bed.endpoints("c", &[&dead, &alive]);
        while bed.dialled("c").is_empty() {
            bed.reaches("c", &alive).await;
        }
        let refused = Instant::now();
        assert_eq!(bed.dialled("c"), [dead.0.to_string()]);
        // Alone it is tried all the same: putting it last empties no cluster.
        bed.endpoints("c", &[&dead]);
        bed.fails("c", 0, &["UF", "1 endpoint(s) of c tried", "refused"])
            .await;
        bed.endpoints("c", &[&dead, &alive]);
        sleep(3 * SECOND).await;
        assert!(refused.elapsed() > 2 * SECOND && bed.dialled("c").is_empty());
    });
}

#[test]
fn attempts_are_bounded() {
    run(async {
        let dead: Vec<_> = (0..12).map(|_| refuses()).collect();
        let bed = Bed::new(vec![plain("c")]);
        bed.endpoints("c", &dead.iter().collect::<Vec<_>>());
        // As long as there are fresh ones; the next connection has but two of those.
        bed.fails("c", 0, &["UF", "10 endpoint(s) of c tried"]).await;
        bed.fails("c", 0, &["UF", "3 endpoint(s) of c tried"]).await;
        for max in [1, 4] {
            let context = LoadBalancerContext {
                max_attempts: Some(max),
                ..LoadBalancerContext::default()
            };
            let error = bed.connect("c", context).await.err().unwrap().to_string();
            assert!(error.contains(&format!("{max} endpoint(s)")), "{error}");
        }
    });
}

#[test]
fn waits_for_first_and_returning_endpoints_only() {
    run(async {
        let port = accepts();
        let bed = Bed::new(vec![plain("c")]);
        bed.fails("c", 5, &["UH", "not known yet; waited 5.0 s"]).await;
        bed.endpoints("c", &[]);
        bed.fails("c", 0, &["UH", "none since the start"]).await;
        bed.endpoints("c", &[&port]);
        bed.reaches("c", &port).await;
        bed.endpoints("c", &[]);
        sleep(SECOND).await;
        bed.fails("c", 14, &["UH", "the last one went 15.0 s ago; waited 14.0 s"])
            .await;
        sleep(SECOND).await;
        bed.fails("c", 0, &["UH", "the last one went 16.0 s ago"]).await;
    });
}

#[test]
fn a_redeploy_of_a_single_instance_fails_no_connection() {
    run(async {
        let (old, new) = (refuses(), accepts());
        // Refused before it is removed: of the mesh, where the news is waited for.
        let bed = Bed::new(vec![mesh("mesh"), plain("plain")]);
        bed.endpoints("mesh", &[&old]);
        bed.endpoints("plain", &[&new]);
        let source = async {
            sleep(SECOND).await;
            bed.endpoints("mesh", &[]);
            bed.endpoints("plain", &[]);
            sleep(11 * SECOND).await;
            bed.endpoints("mesh", &[&new]);
            bed.endpoints("plain", &[&new]);
        };
        let early = bed.outcome("mesh");
        let late = async {
            sleep(3 * SECOND / 2).await;
            bed.outcome("plain").await
        };
        let ((), (early, after), late) = tokio::join!(source, early, late);
        // Its handshake times out, 5 s after the new one appeared; that it was tried is what counts.
        let error = early.unwrap_err();
        assert!(
            error.contains("2 endpoint(s)") && error.contains(&new.0.to_string()),
            "{error}"
        );
        assert!((17..=20).contains(&after), "{after}");
        assert_eq!(late, (Ok(new.0.to_string()), 10));
    });
}

#[test]
fn a_dead_endpoint_of_the_mesh_that_stays_is_given_up_soon() {
    run(async {
        let dead = refuses();
        let bed = Bed::new(vec![mesh("c")]);
        bed.endpoints("c", &[&dead]);
        // It may be starting, until it had time enough.
        bed.fails("c", 5, &["UF", "1 endpoint(s) of c tried", "refused"])
            .await;
        bed.fails("c", 2, &["UF", "1 endpoint(s) of c tried", "refused"])
            .await;
    });
}

#[test]
fn an_endpoint_that_comes_before_it_listens_is_dialled_until_it_does() {
    run(async {
        let starting = refuses();
        let bed = Bed::new(vec![mesh("c")]);
        bed.endpoints("c", &[&starting]);
        let start = async {
            sleep(SECOND).await;
            starting.2.as_ref().unwrap().listen(1).unwrap();
        };
        let ((), (outcome, after)) = tokio::join!(start, bed.outcome("c"));
        // Nobody answers the handshake; that it was connected to is what counts.
        let error = outcome.unwrap_err();
        assert!(
            error.contains("1 endpoint(s)") && !error.contains("refused"),
            "{error}"
        );
        assert!((6..=7).contains(&after), "{after}");
    });
}

#[test]
fn an_endpoint_that_leaves_while_it_is_dialled_is_given_up_for_another() {
    run(async {
        let (old, new) = (accepts(), accepts());
        let bed = Bed::new(vec![mesh("c")]);
        bed.endpoints("c", &[&old]);
        let source = async {
            sleep(SECOND).await;
            bed.endpoints("c", &[&new]);
        };
        let ((), (outcome, after)) = tokio::join!(source, bed.outcome("c"));
        let error = outcome.unwrap_err();
        assert!(
            error.contains("2 endpoint(s)") && error.contains("not connected within 5s"),
            "{error}"
        );
        // 1 s of the old one, 5 s of the new one.
        assert_eq!(after, 6, "{error}");
    });
}

#[test]
fn an_ejected_endpoint_is_waited_for_like_a_lost_one() {
    run(async {
        let dead = refuses();
        let detection = OutlierDetection {
            consecutive_5xx: 2,
            max_ejection_percent: 100,
            base_ejection_time: 10 * SECOND,
            ..OutlierDetection::default()
        };
        let bed = Bed::new(vec![Cluster {
            outlier_detection: Some(detection),
            ..plain("c")
        }]);
        bed.endpoints("c", &[&dead]);
        bed.fails("c", 0, &["UF", "refused"]).await;
        // The second failure ejects it; when it is back, 10 s later, it is tried once more.
        bed.fails("c", 10, &["UF", "2 endpoint(s) of c tried"]).await;
    });
}

#[test]
fn healthy_endpoints_of_a_later_priority_take_over() {
    run(async {
        let (first, second) = (accepts(), accepts());
        let bed = Bed::new(vec![plain("c")]);
        bed.assign("c", &[(&second, true, 1), (&first, true, 0)]);
        for _ in 0..20 {
            bed.reaches("c", &first).await;
        }
        bed.assign("c", &[(&second, true, 1), (&first, false, 0)]);
        for _ in 0..20 {
            bed.reaches("c", &second).await;
        }
        // Refused by the preferred one, a connection goes to the other rather than nowhere.
        let dead = refuses();
        bed.assign("c", &[(&second, true, 1), (&dead, true, 0)]);
        bed.reaches("c", &second).await;
    });
}

#[test]
fn an_aggregate_uses_its_members_in_order() {
    run(async {
        let (a, b) = (accepts(), accepts());
        let bed = Bed::new(vec![
            aggregate("all", &["a", "more"]),
            aggregate("more", &["all", "absent", "b"]),
            aggregate("empty", &["absent"]),
            plain("a"),
            plain("b"),
        ]);
        bed.fails("empty", 0, &["NC"]).await;
        bed.fails("all", 5, &["UH", "a has no healthy endpoint", "not known yet"])
            .await;
        // A silent first member hides no later one.
        bed.endpoints("b", &[&b]);
        bed.reaches("all", &b).await;
        bed.endpoints("a", &[&a]);
        for _ in 0..20 {
            bed.reaches("all", &a).await;
        }
        bed.assign("a", &[(&a, false, 0)]);
        bed.reaches("all", &b).await;
        // The latest lost one is waited for.
        sleep(SECOND).await;
        bed.endpoints("b", &[]);
        bed.fails("all", 15, &["UH", "b has no healthy endpoint", "went 15.0 s ago"])
            .await;
    });
}

#[test]
fn pending_connections_are_limited() {
    run(async {
        let port = accepts();
        let limited = |name, max_pending_requests| Cluster {
            circuit_breakers: CircuitBreakers {
                max_pending_requests,
                ..CircuitBreakers::default()
            },
            ..plain(name)
        };
        let bed = Bed::new(vec![limited("none", Some(0)), limited("one", Some(1))]);
        bed.endpoints("none", &[&port]);
        bed.fails("none", 0, &["UO", "limit of 0 connections that are not made yet"])
            .await;
        let (first, second) = tokio::join!(bed.outcome("one"), bed.outcome("one"));
        assert_eq!(first.1, 5, "{first:?}");
        assert_eq!(second.1, 0, "{second:?}");
        assert!(second.0.unwrap_err().starts_with("UO"));
        // The place is given back.
        bed.endpoints("one", &[&port]);
        bed.reaches("one", &port).await;
    });
}

#[test]
fn connections_are_limited_over_their_whole_life() {
    run(async {
        let port = accepts();
        let bed = Bed::new(vec![Cluster {
            circuit_breakers: CircuitBreakers {
                max_connections: Some(1),
                ..CircuitBreakers::default()
            },
            ..plain("c")
        }]);
        bed.endpoints("c", &[&port]);
        let held = bed.connect("c", LoadBalancerContext::default()).await;
        bed.fails("c", 0, &["UO", "limit of 1 connections"]).await;
        drop(held);
        bed.reaches("c", &port).await;
    });
}

#[test]
fn an_original_destination_is_dialled_unless_it_is_ours() {
    run(async {
        let (port, ours) = (accepts(), accepts());
        let bed = Bed::new(vec![Cluster {
            kind: ClusterKind::OriginalDestination,
            ..plain("c")
        }]);
        let terminal = Terminal::TcpProxy(TcpProxy::to("c".into(), "c".into()));
        let listener = Listener {
            name: "outbound".into(),
            address: Address::Socket(([0, 0, 0, 0], ours.0.port()).into()),
            direction: Direction::Outbound,
            stat_prefix: None,
            filters: ListenerFilters::default(),
            filter_chains: vec![Arc::new(FilterChain {
                name: "".into(),
                matches: Default::default(),
                transport: None,
                filters: vec![],
                terminal,
            })],
            default_filter_chain: None,
            exact_balance: false,
            access_log: vec![],
        };
        bed.change(|snapshot| {
            snapshot.listeners.insert("outbound".into(), Arc::new(listener));
        });
        let dead = refuses();
        for (destination, expected) in [
            (
                None,
                Err("UH c dials the original destination, which is not known"),
            ),
            (Some(ours.0), Err("is a listener's own address")),
            (Some(port.0), Ok(port.0.to_string())),
            (Some(dead.0), Err("UF 1 endpoint(s) of c tried")),
        ] {
            let context = LoadBalancerContext {
                destination,
                ..LoadBalancerContext::default()
            };
            match (bed.connect("c", context).await, expected) {
                (Ok(connected), Ok(endpoint)) => assert_eq!(connected.endpoint, endpoint),
                (Err(error), Err(words)) => {
                    let error = format!("{} {error}", error.flag());
                    assert!(error.contains(words), "{error}");
                }
                (Ok(connected), Err(words)) => panic!("{} instead of {words}", connected.endpoint),
                (Err(error), Ok(_)) => panic!("{error}"),
            }
        }
    });
}

#[test]
fn a_cluster_that_is_not_there_is_named() {
    run(async {
        Bed::new(vec![])
            .fails("ghost", 0, &["NC there is no cluster ghost"])
            .await;
    });
}

#[test]
fn a_host_name_is_resolved_before_the_first_connection() {
    run(async {
        let port = accepts();
        let dns = Dns {
            strict: true,
            refresh: 5 * SECOND,
            family: DnsFamily::V4Only,
        };
        let cluster = Cluster {
            kind: ClusterKind::Dns(dns),
            ..plain("c")
        };
        let bed = Bed::new(vec![cluster]);
        let endpoint = Endpoint {
            address: Target::Host {
                host: "localhost".into(),
                port: port.0.port(),
            },
            weight: 1,
            healthy: true,
            priority: 0,
            hostname: None,
        };
        let assignment = ClusterLoadAssignment {
            endpoints: vec![endpoint],
            ..ClusterLoadAssignment::default()
        };
        bed.change(|snapshot| {
            snapshot.endpoints.insert("c".into(), Arc::new(assignment));
        });
        bed.reaches("c", &port).await;
    });
}
