//! The client against servers of our own: a model for the protocol, a fake one for the stream.

mod fake;
mod faults;
mod model;
mod protocol;
mod store;
