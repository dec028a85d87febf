//! One mesh, both sources: what Consul's HTTP endpoints answered is compiled, what its xDS server sent to a
//! real Envoy at the same time is decoded, and both must come to the same.
//!
//! `recorded/l7` is the lab's scenario of that name; `recorded/rich` has what it lacks: JWTs, balancing,
//! failover, redirects, overrides, limits, exposed paths, a mesh entry; `recorded/rich_allow` the same under a
//! default policy that allows. All of Consul 1.23.0-dev and Envoy 1.40. What is let pass as different stands in
//! [`comparable`], [`chain_facts`] and [`same_rules`], each with its reason.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use attache_proto::json::{Diagnostics, to_wire};
use attache_proto::{TypeUrl, envoy};
use serde_json::{Value, json};

use super::authority;
use super::compile::compile;
use super::intentions::{self, DefaultPolicy};
use super::jwt_provider;
use super::state::{Authority, Given, QueryKey, State};
use super::{agent_version, chain, health, registration};
use crate::control::xds::decode::{Context, Disk, Shared, cluster, listener, route};
use crate::model::http::{HttpConnectionManager, HttpFilter};
use crate::model::listener::{ClientCertificate, DownstreamTls, TlsParams};
use crate::model::matcher::Request;
use crate::model::rbac::Rbac;
use crate::model::route::{ClusterSpecifier, HeaderMutations, Route, RouteDecision, VirtualHost};
use crate::model::secret::{CertificateFacts, PrivateKey, SanMatcher};
use crate::model::{
    Action, Cluster, Downstream, FilterChain, Identity, Listener, Metadata, Name, Peer, RouteConfiguration,
    Snapshot, SpiffeId, Terminal,
};

/// One proxy of a recorded mesh.
struct Proxy {
    folder: &'static str,
    /// Where Consul's answers are that do not depend on the default policy.
    answers: &'static str,
    id: &'static str,
    service: &'static str,
    default: Action,
    /// Callers about whom the sources differ: see [`precedence_is_what_consul_documents`].
    not_asked: &'static [&'static str],
}

fn path(folder: &str, file: &str) -> PathBuf {
    let recorded = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/control/consul/recorded");
    recorded.join(folder).join(file)
}

fn read(folder: &str, file: &str) -> Option<Vec<u8>> {
    std::fs::read(path(folder, &format!("{file}.json"))).ok()
}

impl Proxy {
    fn answer(&self, file: &str) -> Vec<u8> {
        read(self.answers, file).unwrap_or_else(|| panic!("{}/{file}.json is missing", self.answers))
    }

    fn own(&self, file: &str) -> Vec<u8> {
        read(self.folder, file).unwrap_or_else(|| panic!("{}/{file}.json is missing", self.folder))
    }

    /// What the source would know of the mesh.
    fn state(&self) -> State {
        let trust = Arc::new(authority::decode_roots(&self.own("roots")).unwrap());
        let registration = registration::decode(&self.own(&format!("service_{}", self.id))).unwrap();
        let intentions = self.answer(&format!("intentions_{}", self.service));
        let mut state = State {
            intentions: Some(intentions::decode_for(&intentions, self.service).unwrap()),
            default_policy: DefaultPolicy::Known(self.default),
            authority: Some(Authority {
                identity: identity(&trust.trust_domain, self.service),
                trust,
            }),
            prefix_rewrites: Some(match read(self.answers, "version") {
                Some(version) => agent_version::decode(&version).unwrap(),
                None => agent_version::decode(br#"{"HumanVersion":"1.23.0-dev"}"#).unwrap(),
            }),
            ..State::default()
        };
        if let Some(mesh) = read(self.answers, "mesh") {
            state.mesh = authority::decode_mesh(&mesh).unwrap();
        }
        for name in ["okta", "auth0", "plain"] {
            if let Some(entry) = read(self.answers, &format!("provider_{name}")) {
                let none: &dyn Fn(&str) -> Result<String, String> = &|_| Err("no file".to_owned());
                let provider = jwt_provider::decode(&entry, name, none).unwrap();
                state.providers.insert(name.to_owned(), Some(provider));
            }
        }
        for upstream in &registration.upstreams {
            if let Some(body) = read(self.answers, &format!("chain_{}", upstream.destination)) {
                let key = upstream.chain_key(&registration);
                state.chains.insert(key, chain::decode(&body).unwrap());
            }
        }
        if let Some(body) = read(self.answers, "query_q") {
            let key = QueryKey {
                name: "q".to_owned(),
                datacenter: None,
            };
            state.queries.insert(key, health::decode_query(&body).unwrap());
        }
        state.registration = Some(registration);
        state
    }

    fn compiled(&self) -> (Snapshot, BTreeSet<String>) {
        let given = Given {
            hints: Vec::new(),
            public: None,
            nomad: false,
            manual: false,
        };
        let compiled = compile(&given, &self.state(), None);
        (compiled.snapshot.unwrap(), compiled.notices)
    }

    /// What Envoy got, decoded. Its dump has no keys: one of ours stands in their place.
    fn decoded(&self) -> Snapshot {
        let mut dump: Value = serde_json::from_slice(&self.own(&format!("envoy_{}", self.id))).unwrap();
        unredact(&mut dump, &leaf());
        let (disk, secrets, mut shared) = (Disk::default(), BTreeMap::new(), Shared::default());
        let mut ctx = Context::new(&disk, &secrets, |_| Ok(()), &mut shared);
        let mut snapshot = Snapshot::default();
        for bytes in wire::<envoy::config::listener::v3::Listener>(&dump["listeners"]) {
            let listener = listener::decode_bytes(&bytes, &mut ctx).unwrap();
            snapshot
                .listeners
                .insert(Arc::clone(&listener.name), Arc::new(listener));
        }
        for bytes in wire::<envoy::config::cluster::v3::Cluster>(&dump["clusters"]) {
            let decoded = cluster::decode_bytes(&bytes, &mut ctx).unwrap();
            let name = Arc::clone(&decoded.cluster.name);
            if let Some(endpoints) = decoded.endpoints {
                snapshot.endpoints.insert(Arc::clone(&name), Arc::new(endpoints));
            }
            snapshot.clusters.insert(name, Arc::new(decoded.cluster));
        }
        for bytes in wire::<envoy::config::route::v3::RouteConfiguration>(&dump["routes"]) {
            let table = route::decode_bytes(&bytes, &mut ctx).unwrap();
            snapshot.routes.insert(Arc::clone(&table.name), Arc::new(table));
        }
        snapshot
    }
}

/// The resources of a list as they would come over the wire.
fn wire<T: TypeUrl>(list: &Value) -> Vec<Vec<u8>> {
    let resource = |json: &Value| {
        let mut json = json.clone();
        json.as_object_mut().unwrap().shift_remove("@type");
        to_wire(T::TYPE_NAME, &json, &mut Diagnostics::default()).unwrap()
    };
    list.as_array().unwrap().iter().map(resource).collect()
}

fn leaf() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = "spiffe://td.consul/ns/default/dc/dc1/svc/web";
    params
        .subject_alt_names
        .push(rcgen::SanType::URI(uri.try_into().unwrap()));
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn unredact(value: &mut Value, leaf: &(String, String)) {
    match value {
        Value::Object(object) => {
            if object.contains_key("private_key") {
                object.insert("private_key".to_owned(), json!({ "inline_string": leaf.1 }));
                object.insert("certificate_chain".to_owned(), json!({ "inline_string": leaf.0 }));
            }
            object.values_mut().for_each(|value| unredact(value, leaf));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| unredact(value, leaf)),
        _ => {}
    }
}

fn identity(trust_domain: &str, service: &str) -> Arc<Identity> {
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(vec![1, 2, 3]);
    Arc::new(Identity {
        chain: vec![vec![1].into()],
        key: Arc::new(PrivateKey::from(&rustls_pki_types::PrivateKeyDer::Pkcs8(der))),
        leaf: CertificateFacts {
            serial: "1".to_owned(),
            not_before: std::time::SystemTime::UNIX_EPOCH,
            not_after: std::time::SystemTime::UNIX_EPOCH,
            uris: Vec::new(),
            dns_names: Vec::new(),
        },
        spiffe_id: SpiffeId::parse(&format!(
            "spiffe://{trust_domain}/ns/default/dc/dc1/svc/{service}"
        ))
        .ok(),
        path: None,
    })
}

/// The terminal filter of a listener of one chain, and that chain.
fn only_chain(listener: &Listener) -> (&FilterChain, &HttpConnectionManager) {
    let [chain] = listener.filter_chains.as_slice() else {
        panic!("{} has several chains", listener.name)
    };
    match &chain.terminal {
        Terminal::HttpConnectionManager(manager) => (chain, manager),
        Terminal::TcpProxy(_) => panic!("{} is not of HTTP", listener.name),
    }
}

/// The manager without its rules, which are asked instead of compared: Consul writes them without an order,
/// here they keep theirs.
fn without_rules(manager: &HttpConnectionManager) -> HttpConnectionManager {
    let mut manager = manager.clone();
    for filter in &mut manager.http_filters {
        if let HttpFilter::Rbac { rules, .. } = filter {
            *rules = None;
        }
    }
    manager
}

fn rules(manager: &HttpConnectionManager) -> Option<&Rbac> {
    manager.http_filters.iter().find_map(|filter| match filter {
        HttpFilter::Rbac { rules, .. } => rules.as_deref(),
        _ => None,
    })
}

/// What of a chain is compared: not whom it trusts by (one looks for a SPIFFE ID in the bundle of the trust
/// domain, which Envoy is told by roots alone) nor the identity, which the dump does not have.
fn chain_facts(chain: &FilterChain) -> (bool, Vec<Arc<str>>, TlsParams) {
    match &chain.transport {
        None => (false, Vec::new(), TlsParams::default()),
        Some(tls) => {
            let DownstreamTls {
                client, alpn, params, ..
            } = &**tls;
            let ClientCertificate::Required(_) = client else {
                panic!("no mutual TLS")
            };
            (true, alpn.clone(), params.clone())
        }
    }
}

fn same_listeners(ours: &Snapshot, theirs: &Snapshot) {
    let names = |s: &Snapshot| s.listeners.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs));
    for (name, ours) in &ours.listeners {
        let theirs = &theirs.listeners[name];
        let ((our_chain, our_manager), (their_chain, their_manager)) = (only_chain(ours), only_chain(theirs));
        assert_eq!(without_rules(our_manager), without_rules(their_manager), "{name}");
        assert_eq!(chain_facts(our_chain), chain_facts(their_chain), "{name}");
        assert_eq!(our_chain.filters, their_chain.filters, "{name}");
        assert_eq!(our_chain.matches, their_chain.matches, "{name}");
        let rest = |listener: &Listener| Listener {
            filter_chains: Vec::new(),
            ..listener.clone()
        };
        assert_eq!(rest(ours), rest(theirs), "{name}");
    }
}

/// What of a cluster's TLS is compared: identity and trust are left out as in [`chain_facts`].
type TlsFacts = (Option<Arc<str>>, Vec<SanMatcher>, TlsParams);

/// A cluster without what legitimately differs.
fn comparable(cluster: &Cluster) -> (Cluster, Option<TlsFacts>) {
    let mut cluster = cluster.clone();
    // Consul gives a cluster its own name once more; none means the same.
    cluster.alt_stat_name = None;
    // Consul leaves a prepared query Envoy's panic; here unhealthy endpoints of the mesh are never dialled.
    if cluster.name.contains(".query.") {
        cluster.panic_threshold = 0;
    }
    let is_query = cluster.name.contains(".query.");
    let tls = cluster.transport.take().map(|tls| {
        // Consul's was not answered yet, and then Envoy takes everybody of the mesh; here nobody is dialled.
        let names = if is_query {
            Vec::new()
        } else {
            tls.validation.names.clone()
        };
        (tls.sni.clone(), names, tls.params.clone())
    });
    (cluster, tls)
}

fn same_clusters(ours: &Snapshot, theirs: &Snapshot) {
    let used = |name: &Name| ours.clusters.contains_key(name);
    // Consul sends a cluster for every provider that is remote, whether or not an intention names it.
    let wanted = |name: &&Name| used(name) || !name.starts_with("jwks_cluster_");
    let names: Vec<_> = theirs.clusters.keys().filter(wanted).collect();
    assert_eq!(ours.clusters.keys().collect::<Vec<_>>(), names);
    for (name, ours) in &ours.clusters {
        assert_eq!(comparable(ours), comparable(&theirs.clusters[name]), "{name}");
    }
    // Those of EDS are compared nowhere: they come from elsewhere on both sides.
    for (name, theirs) in theirs.endpoints.iter().filter(|(name, _)| used(name)) {
        assert_eq!(&ours.endpoints[name], theirs, "{name}");
    }
}

fn same_routes(ours: &Snapshot, theirs: &Snapshot) {
    let names = |s: &Snapshot| s.routes.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs));
    for (name, ours) in &ours.routes {
        let theirs = &theirs.routes[name];
        let (our_host, their_host) = (&ours.virtual_hosts()[0], &theirs.virtual_hosts()[0]);
        assert_eq!(our_host.routes.len(), their_host.routes.len(), "{name}");
        for (index, (ours, theirs)) in our_host.routes.iter().zip(&their_host.routes).enumerate() {
            assert_eq!(in_order(ours), in_order(theirs), "{name}: route {index}");
        }
        let rest = |table: &RouteConfiguration| {
            let host = VirtualHost {
                routes: Vec::new(),
                ..(*table.virtual_hosts()[0]).clone()
            };
            let mut rest = RouteConfiguration::new(Arc::clone(&table.name), vec![Arc::new(host)]).unwrap();
            rest.validate_clusters = table.validate_clusters;
            rest
        };
        assert_eq!(ours.virtual_hosts().len(), 1);
        assert_eq!(theirs.virtual_hosts().len(), 1);
        assert_eq!(rest(ours), rest(theirs), "{name}");
    }
}

/// The route with the headers that it adds in one order: Consul has them in that of a Go map, which is any.
fn in_order(route: &Route) -> Route {
    let sort = |headers: &mut HeaderMutations| {
        for added in [&mut headers.request_add, &mut headers.response_add] {
            added.sort_by_key(|header| (format!("{:?}", header.append), header.name.to_string()));
        }
    };
    let mut route = route.clone();
    sort(&mut route.headers);
    if let RouteDecision::Route(action) = &mut route.action
        && let ClusterSpecifier::Weighted(clusters) = &mut action.cluster
    {
        clusters.iter_mut().for_each(|cluster| sort(&mut cluster.headers));
    }
    route
}

/// A request made up.
#[derive(Debug, Default)]
struct Made {
    method: &'static str,
    path: &'static str,
    headers: BTreeMap<&'static str, &'static str>,
    metadata: Metadata,
}

impl Request for Made {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":method" => Some(self.method.into()),
            ":path" => Some(self.path.into()),
            _ => self.headers.get(name).map(|value| (*value).into()),
        }
    }

    fn path(&self) -> &str {
        self.path
    }

    fn metadata(&self, filter: &str, path: &[Arc<str>]) -> Option<Cow<'_, str>> {
        let value = self.metadata.get(filter, path)?;
        value.as_str().map(Cow::Borrowed)
    }
}

const PATHS: [&str; 16] = [
    "/",
    "/ok",
    "/secret",
    "/secret/x",
    "/n/1",
    "/n/x",
    "/deny",
    "/denied",
    "/admin",
    "/admin/x",
    "/p",
    "/q",
    "/q/1",
    "/pkg.Svc/M",
    "/pkg.Svc",
    "/ok/",
];
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "OPTIONS", "GETS"];
const HEADERS: [(&str, &[&str]); 8] = [
    ("x-key", &["k", "kk"]),
    ("x-role", &["ADMIN", "admin", "user"]),
    ("x-n", &["ann", "z"]),
    ("x-bad", &["", "1"]),
    ("x-re", &["aab", "aabb"]),
    ("x-pre", &["Px", "px"]),
    ("x-suf", &["aF", "b"]),
    ("x-no", &["1"]),
];

fn made(random: &mut fastrand::Rng) -> Made {
    let mut made = Made {
        method: METHODS[random.usize(..METHODS.len())],
        path: PATHS[random.usize(..PATHS.len())],
        ..Made::default()
    };
    for (name, values) in HEADERS {
        // Few of them spoil a request that others must match.
        let likely = matches!(name, "x-role" | "x-re" | "x-pre" | "x-suf" | "x-key" | "x-n");
        if random.u8(..10) < if likely { 7 } else { 1 } {
            made.headers.insert(name, values[random.usize(..values.len())]);
        }
    }
    let tokens = [
        (
            "okta",
            json!({"iss": "https://okta.test", "sub": "u", "aud2": "x", "perms": {"role": "admin"}}),
        ),
        (
            "okta",
            json!({"iss": "https://okta.test", "sub": "v", "perms": {"role": ["admin"]}}),
        ),
        (
            "okta",
            json!({"iss": "plain", "sub": "u", "perms": {"role": "admin"}}),
        ),
        ("plain", json!({"iss": "plain"})),
        ("auth0", json!({"iss": "auth0"})),
        ("auth0", json!({"sub": "auth0"})),
    ];
    for (provider, payload) in tokens {
        if random.u8(..4) == 0 {
            let key = format!("jwt_payload_{provider}");
            made.metadata.set("envoy.filters.http.jwt_authn", &key, payload);
        }
    }
    made
}

fn caller(trust_domain: &str, path: &str) -> Downstream {
    let id = SpiffeId::parse(&format!("spiffe://{trust_domain}{path}")).unwrap();
    Downstream {
        peer: Some(Arc::new(Peer::of(id))),
        ..Downstream::default()
    }
}

/// Asks both of many requests. Every rule of ours must have decided some; which of Consul's policies decided
/// is not compared, because it has one where several intentions are.
fn same_rules(ours: &Rbac, theirs: &Rbac, trust_domain: &str, proxy: &Proxy) {
    let mut callers = Vec::new();
    let services = ["web", "shop", "cart", "evil", "api", "other"];
    for service in services
        .iter()
        .filter(|service| !proxy.not_asked.contains(service))
    {
        callers.push(caller(trust_domain, &format!("/ns/default/dc/dc2/svc/{service}")));
    }
    // By default they are let in by Consul's list of denials, which names one trust domain and the services
    // of one namespace: nobody else gets through the handshake, but here they are denied twice.
    if proxy.default == Action::Deny {
        callers.push(caller("other.consul", "/ns/default/dc/dc1/svc/web"));
        callers.push(caller(trust_domain, "/ns/prod/dc/dc1/svc/web"));
        callers.push(caller(trust_domain, "/agent/client/dc/dc1/id/x"));
    }
    let mut random = fastrand::Rng::with_seed(7);
    let (mut decided, mut allowed) = (BTreeSet::new(), 0);
    for _ in 0..20_000 {
        let request = made(&mut random);
        let downstream = &callers[random.usize(..callers.len())];
        let verdict = ours.evaluate(downstream, Some(&request));
        let theirs = theirs.evaluate(downstream, Some(&request));
        assert_eq!(
            verdict.action, theirs.action,
            "{downstream:?} {request:?}: {} {}",
            verdict.policy, theirs.policy
        );
        allowed += usize::from(verdict.action == Action::Allow);
        decided.insert(verdict.policy);
    }
    assert!(allowed > 0, "nobody was let in");
    let idle: Vec<_> = ours
        .rules
        .iter()
        .filter(|rule| !decided.contains(&rule.name))
        .collect();
    // Intentions of lower precedence with the same source never decide anything.
    let shadowed = |name: &str| name.ends_with("-> *: allow") || name.ends_with("-> *: deny");
    assert!(idle.iter().all(|rule| shadowed(&rule.name)), "{idle:?}");
}

fn compare(proxy: &Proxy) -> BTreeSet<String> {
    let (ours, notices) = proxy.compiled();
    let theirs = proxy.decoded();
    same_listeners(&ours, &theirs);
    same_clusters(&ours, &theirs);
    same_routes(&ours, &theirs);
    let trust_domain = proxy.state().authority.unwrap().trust.trust_domain.to_string();
    let mut asked = 0;
    for (name, ours) in &ours.listeners {
        let (_, ours) = only_chain(ours);
        let (_, theirs) = only_chain(&theirs.listeners[name]);
        match (rules(ours), rules(theirs)) {
            (Some(ours), Some(theirs)) => {
                asked += 1;
                same_rules(ours, theirs, &trust_domain, proxy);
            }
            (None, None) => {}
            _ => panic!("{name}: one of them has no rules"),
        }
    }
    assert_eq!(asked, 1, "the public listener alone has rules");
    notices
}

#[test]
fn the_lab_scenario() {
    for (id, service) in [
        ("web-1", "web"),
        ("slow-1", "slow"),
        ("grpc-1", "grpc"),
        ("h2-1", "h2svc"),
        ("api-v1", "api"),
        ("admin-1", "admin"),
    ] {
        let notices = compare(&Proxy {
            folder: "l7",
            answers: "l7",
            id,
            service,
            default: Action::Deny,
            not_asked: &[],
        });
        let cut = |notice: &&String| notice.contains("routes without a PrefixRewrite cut off");
        let others: Vec<_> = notices.iter().filter(|notice| !cut(notice)).collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

fn rich(id: &'static str, service: &'static str) -> Proxy {
    Proxy {
        folder: "rich",
        answers: "rich",
        id,
        service,
        default: Action::Deny,
        not_asked: &[],
    }
}

#[test]
fn routes_balancing_failover_and_overrides() {
    compare(&rich("web-1", "web"));
}

#[test]
fn permissions_tokens_and_exposed_paths() {
    let notices = compare(&rich("api-1", "api"));
    assert_eq!(
        notices.into_iter().collect::<Vec<_>>(),
        [
            "jwt-provider okta: CacheConfig has no effect, as in Consul",
            "jwt-provider okta: ClockSkewSeconds has no effect, as in Consul: it is 60 s",
        ]
    );
    compare(&rich("h2-1", "h2"));
    compare(&Proxy {
        not_asked: &["web", "shop"],
        ..rich("grpc-1", "grpc")
    });
}

/// `* -> grpc` with permissions stands above `web -> *: allow`, so Consul's documentation and its
/// `/v1/agent/connect/authorize` let its permissions alone decide. Its xDS server subtracts an intention only
/// from later ones whose source is wider, so Envoy lets web ask for everything. Here, as for TCP, precedence
/// holds.
#[test]
fn precedence_is_what_consul_documents() {
    let proxy = rich("grpc-1", "grpc");
    let public: Name = "public_listener:127.0.0.1:18704".into();
    let (ours, theirs) = (proxy.compiled().0, proxy.decoded());
    let trust = proxy.state().authority.unwrap().trust;
    let web = caller(&trust.trust_domain, "/ns/default/dc/dc1/svc/web");
    let ask = |snapshot: &Snapshot, path| {
        let request = Made {
            method: "POST",
            path,
            ..Made::default()
        };
        let rules = rules(only_chain(&snapshot.listeners[&public]).1).unwrap();
        rules.evaluate(&web, Some(&request)).action
    };
    assert_eq!(ask(&ours, "/pkg.Svc/M"), Action::Allow);
    assert_eq!(
        (ask(&ours, "/"), ask(&theirs, "/")),
        (Action::Deny, Action::Allow)
    );
}

#[test]
fn a_default_that_allows() {
    for (id, service) in [("api-1", "api"), ("h2-1", "h2")] {
        let notices = compare(&Proxy {
            folder: "rich_allow",
            answers: "rich",
            id,
            service,
            default: Action::Allow,
            not_asked: &[],
        });
        let unasked = "as in Consul its JWT is not asked for, because the default policy is allow";
        assert!(
            notices.iter().any(|notice| notice.contains(unasked)),
            "{notices:?}"
        );
    }
}
