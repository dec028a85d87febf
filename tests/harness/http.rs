//! HTTP as seen from outside a proxy: an upstream that does what each request asks of it, clients for
//! HTTP/1 and HTTP/2, and cases whose outcomes through two proxies on one configuration are compared.
//!
//! ```text
//! let routes = json!([{ "match": { "path": "/exact" }, "route": { "cluster": "a" } }]);
//! Group::new("routes")
//!     .manager(Manager::new("main").routes(routes))
//!     .cases([get("exact", "/exact"), get("longer", "/exact/")])
//!     .run(OURS)
//!     .await;
//! ```
//! An outcome is text, line by line: what the downstream got, how the connection went on, what each upstream
//! saw. What differs from run to run (dates, ports, identifiers) is replaced by a name in it.

pub mod bed;
pub mod bulk;
pub mod case;
pub mod config;
pub mod diff;
pub mod group;
pub mod h1;
pub mod h2c;
pub mod outcome;
pub mod seen;
pub mod upstream;
pub mod wire;

pub use bed::{Bed, Upstreams};
pub use case::{Case, Path, case, get, post, raw};
pub use config::{Manager, cluster};
pub use group::Group;
