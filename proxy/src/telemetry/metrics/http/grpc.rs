//! gRPC calls as Envoy's `grpc_stats` counts them: `cluster.<name>.grpc.…`.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::milliseconds;
use crate::model::http::GrpcStats;
use crate::telemetry::metrics::{Counter, Histogram, Scope, registry, sanitized};

/// Methods that are counted by name, a cluster and worker: paths come from downstreams, and memory must not.
const MAX_METHODS: usize = 1024;

/// Status codes beyond those that gRPC defines that are counted by number.
const MAX_ODD_STATUSES: usize = 64;

/// The status codes that gRPC defines: 0 to 16.
const STATUSES: usize = 17;

/// A worker's handles for the calls to one cluster, by method where the filter is told so.
#[derive(Debug)]
pub struct GrpcMetrics {
    config: GrpcStats,
    scope: Scope,
    together: Rc<GrpcTotals>,
    /// By path, such as `/pkg.Service/Method`.
    methods: RefCell<HashMap<String, Rc<GrpcTotals>>>,
}

/// The handles for one method, or for all together. Each exists from its first event on.
#[derive(Debug)]
pub struct GrpcTotals {
    scope: Scope,
    /// Such as `grpc.pkg.Service.Method.`.
    prefix: String,
    total: OnceCell<Counter>,
    success: OnceCell<Counter>,
    failure: OnceCell<Counter>,
    requests: OnceCell<Counter>,
    responses: OnceCell<Counter>,
    time: OnceCell<Histogram>,
    statuses: [OnceCell<Counter>; STATUSES],
    odd_statuses: RefCell<HashMap<u32, Counter>>,
    upstream: bool,
}

impl GrpcMetrics {
    /// For the calls to `cluster`, by its name in statistics, through a filter of this `config`.
    pub fn new(cluster: &str, config: GrpcStats) -> Self {
        let scope = registry().scope(&format!("cluster.{}.", sanitized(cluster)));
        Self {
            together: Rc::new(GrpcTotals::new(scope.clone(), "grpc.".to_owned(), config)),
            methods: RefCell::default(),
            config,
            scope,
        }
    }

    /// The handles for a call of `path`, `/<service>/<method>`. `None` where it has another form: Envoy does
    /// not count such calls. Beyond 1,024 methods, calls count in those of all together.
    pub fn call(&self, path: &str) -> Option<Rc<GrpcTotals>> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        if service.is_empty() || method.is_empty() || method.contains('/') {
            return None;
        }
        if !self.config.stats_for_all_methods {
            return Some(Rc::clone(&self.together));
        }
        let mut methods = self.methods.borrow_mut();
        if let Some(totals) = methods.get(path) {
            return Some(Rc::clone(totals));
        }
        if methods.len() >= MAX_METHODS {
            return Some(Rc::clone(&self.together));
        }
        let service = if self.config.replace_dots_in_grpc_service_name {
            service.replace('.', "_")
        } else {
            service.to_owned()
        };
        let prefix = format!("grpc.{}.{}.", sanitized(&service), sanitized(method));
        let totals = Rc::new(GrpcTotals::new(self.scope.clone(), prefix, self.config));
        methods.insert(path.to_owned(), Rc::clone(&totals));
        Some(totals)
    }
}

impl GrpcTotals {
    fn new(scope: Scope, prefix: String, config: GrpcStats) -> Self {
        Self {
            scope,
            prefix,
            total: OnceCell::new(),
            success: OnceCell::new(),
            failure: OnceCell::new(),
            requests: OnceCell::new(),
            responses: OnceCell::new(),
            time: OnceCell::new(),
            statuses: [const { OnceCell::new() }; STATUSES],
            odd_statuses: RefCell::default(),
            upstream: config.enable_upstream_stats,
        }
    }

    /// `number` more messages went upstream.
    pub fn request_messages(&self, number: u64) {
        self.add(&self.requests, "request_message_count", number);
    }

    /// `number` more messages came from upstream.
    pub fn response_messages(&self, number: u64) {
        self.add(&self.responses, "response_message_count", number);
    }

    /// The call has its `grpc-status`: from the upstream, or in an answer made here. A call that ends without
    /// one counts nowhere.
    pub fn finished(&self, status: u32) {
        self.add(&self.total, "total", 1);
        if status == 0 {
            self.add(&self.success, "success", 1);
        } else {
            self.add(&self.failure, "failure", 1);
        }
        let defined = usize::try_from(status).ok().and_then(|at| self.statuses.get(at));
        if let Some(counter) = defined {
            self.add(counter, &status.to_string(), 1);
            return;
        }
        let mut odd = self.odd_statuses.borrow_mut();
        if odd.len() < MAX_ODD_STATUSES || odd.contains_key(&status) {
            let new = || self.counter(&status.to_string());
            odd.entry(status).or_insert_with(new).increment(1);
        }
    }

    /// The upstream's response came whole, `duration` after the request had; counted where
    /// `enable_upstream_stats` is set.
    pub fn upstream_complete(&self, duration: Duration) {
        if self.upstream {
            let new = || self.scope.histogram(format!("{}upstream_rq_time", self.prefix));
            self.time.get_or_init(new).record(milliseconds(duration));
        }
    }

    fn add(&self, counter: &OnceCell<Counter>, what: &str, by: u64) {
        if by > 0 {
            counter.get_or_init(|| self.counter(what)).increment(by);
        }
    }

    fn counter(&self, what: &str) -> Counter {
        self.scope.counter(format!("{}{what}", self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(cluster: &str) -> Vec<String> {
        let prefix = format!("cluster.{cluster}.");
        let samples = registry().collect(|name| name.starts_with(&prefix));
        let rest = |name: &str| name.strip_prefix(&prefix).map(str::to_owned);
        samples.iter().filter_map(|s| rest(&s.name)).collect()
    }

    const ALL: GrpcStats = GrpcStats {
        stats_for_all_methods: true,
        enable_upstream_stats: false,
        replace_dots_in_grpc_service_name: false,
    };

    #[test]
    fn paths_of_another_form_are_not_counted() {
        let metrics = GrpcMetrics::new("grpc-paths", ALL);
        for path in ["", "/", "/dead", "//m", "/s/", "/s/m/x", "s/m", "*"] {
            assert!(metrics.call(path).is_none(), "{path}");
        }
        assert!(metrics.call("/s/m?x=/y/z").is_some());
        assert!(shown("grpc-paths").is_empty());
    }

    #[test]
    fn names_do_not_grow_without_bound() {
        let metrics = GrpcMetrics::new("grpc-bound", ALL);
        for number in 0..MAX_METHODS + 5 {
            metrics.call(&format!("/s/m{number}")).unwrap().finished(0);
        }
        let together = |name: &&String| !name.starts_with("grpc.s.");
        let shown_now = shown("grpc-bound");
        assert_eq!(
            shown_now.iter().filter(|n| n.ends_with(".total")).count(),
            MAX_METHODS + 1
        );
        let together: Vec<&String> = shown_now.iter().filter(together).collect();
        assert_eq!(together, ["grpc.0", "grpc.success", "grpc.total"]);

        let odd = GrpcMetrics::new("grpc-odd", GrpcStats::default());
        for status in 0..1000 {
            odd.call("/s/m").unwrap().finished(status);
        }
        // With `total`, `success` and `failure`.
        assert_eq!(shown("grpc-odd").len(), STATUSES + MAX_ODD_STATUSES + 3);
    }

    #[test]
    fn dots_of_a_service_can_be_replaced() {
        let config = GrpcStats {
            replace_dots_in_grpc_service_name: true,
            ..ALL
        };
        let metrics = GrpcMetrics::new("grpc-dots", config);
        metrics.call("/pkg.v1.Svc/Do").unwrap().request_messages(2);
        assert_eq!(shown("grpc-dots"), ["grpc.pkg_v1_Svc.Do.request_message_count"]);
    }
}
