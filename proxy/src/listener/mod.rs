//! Where bytes come in: binding, accepting, and the life of one connection.
//!
//! [`manager`] binds on the control thread; everything else runs inside one worker.

pub mod accept;
pub mod active;
pub mod balance;
pub mod connection;
pub mod dispatch;
pub mod filters;
pub mod live;
pub mod local_app;
pub mod manager;
pub mod worker;

#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transparent_tests;
