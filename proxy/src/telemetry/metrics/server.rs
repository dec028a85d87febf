//! What the control thread counts for the process as a whole.

use super::{Counter, Gauge, Histogram, Scope, registry};

/// `server.…`. Envoy's `server.version` is a number made of a source revision and not had here.
#[derive(Debug)]
pub struct ServerMetrics {
    /// `live`: 1 while serving, 0 in a drain.
    pub live: Gauge,
    /// `state`: Envoy's number of the phase (0 live, 1 draining, 2 and 3 before).
    pub state: Gauge,
    /// `uptime`, seconds.
    pub uptime: Gauge,
    /// `concurrency`: workers.
    pub concurrency: Gauge,
    /// `total_connections`: of all listeners, now.
    pub total_connections: Gauge,
    /// `days_until_first_cert_expiring`.
    pub days_until_first_cert_expiring: Gauge,
    /// `memory_allocated`: bytes in use by the allocator.
    pub memory_allocated: Gauge,
    /// `memory_heap_size`: bytes that the allocator has from the kernel.
    pub memory_heap_size: Gauge,
    /// `memory_physical_size`: bytes resident.
    pub memory_physical_size: Gauge,
    /// `initialization_time_ms`: from the start to serving.
    pub initialization_time_ms: Histogram,
    _scope: Scope,
}

impl ServerMetrics {
    /// Resolves the handles for this thread.
    pub fn new() -> Self {
        let scope = registry().scope("server.");
        Self {
            live: scope.gauge("live"),
            state: scope.gauge("state"),
            uptime: scope.gauge("uptime"),
            concurrency: scope.gauge("concurrency"),
            total_connections: scope.gauge("total_connections"),
            days_until_first_cert_expiring: scope.gauge("days_until_first_cert_expiring"),
            memory_allocated: scope.gauge("memory_allocated"),
            memory_heap_size: scope.gauge("memory_heap_size"),
            memory_physical_size: scope.gauge("memory_physical_size"),
            initialization_time_ms: scope.histogram("initialization_time_ms"),
            _scope: scope,
        }
    }
}

impl Default for ServerMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// `listener_manager.…`.
#[derive(Debug)]
pub struct ListenerManagerMetrics {
    /// `listener_added`.
    pub added: Counter,
    /// `listener_modified`.
    pub modified: Counter,
    /// `listener_in_place_updated`: changed without a new socket.
    pub in_place_updated: Counter,
    /// `listener_removed`.
    pub removed: Counter,
    /// `listener_create_success`.
    pub create_success: Counter,
    /// `listener_create_failure`: an address could not be bound.
    pub create_failure: Counter,
    /// `total_listeners_active`.
    pub active: Gauge,
    /// `workers_started`: 1 once they are.
    pub workers_started: Gauge,
    _scope: Scope,
}

impl ListenerManagerMetrics {
    /// Resolves the handles for this thread.
    pub fn new() -> Self {
        let scope = registry().scope("listener_manager.");
        Self {
            added: scope.counter("listener_added"),
            modified: scope.counter("listener_modified"),
            in_place_updated: scope.counter("listener_in_place_updated"),
            removed: scope.counter("listener_removed"),
            create_success: scope.counter("listener_create_success"),
            create_failure: scope.counter("listener_create_failure"),
            active: scope.gauge("total_listeners_active"),
            workers_started: scope.gauge("workers_started"),
            _scope: scope,
        }
    }
}

impl Default for ListenerManagerMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// `cluster_manager.…`.
#[derive(Debug)]
pub struct ClusterManagerMetrics {
    /// `cluster_added`.
    pub added: Counter,
    /// `cluster_modified`.
    pub modified: Counter,
    /// `cluster_removed`.
    pub removed: Counter,
    /// `active_clusters`.
    pub active: Gauge,
    /// `warming_clusters`: not used before their endpoints are known.
    pub warming: Gauge,
    _scope: Scope,
}

impl ClusterManagerMetrics {
    /// Resolves the handles for this thread.
    pub fn new() -> Self {
        let scope = registry().scope("cluster_manager.");
        Self {
            added: scope.counter("cluster_added"),
            modified: scope.counter("cluster_modified"),
            removed: scope.counter("cluster_removed"),
            active: scope.gauge("active_clusters"),
            warming: scope.gauge("warming_clusters"),
            _scope: scope,
        }
    }
}

impl Default for ClusterManagerMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// `control_plane.…`.
#[derive(Debug)]
pub struct ControlPlaneMetrics {
    /// `connected_state`: 1 while a stream is open.
    pub connected_state: Gauge,
    _scope: Scope,
}

impl ControlPlaneMetrics {
    /// Resolves the handles for this thread.
    pub fn new() -> Self {
        let scope = registry().scope("control_plane.");
        Self {
            connected_state: scope.gauge("connected_state"),
            _scope: scope,
        }
    }
}

impl Default for ControlPlaneMetrics {
    fn default() -> Self {
        Self::new()
    }
}
